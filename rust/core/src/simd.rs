//! Functions compiled twice: for any x86-64, and for processors with AVX2.
//!
//! Which one runs is asked of the processor, so that one build serves all and
//! `target-cpu=native` is never needed.

/// Compiles a function a second time with AVX2, BMI and POPCNT, and picks at run time.
macro_rules! with_avx2 {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    plain($($arg),*)
                }
                // BMI and POPCNT are older than AVX2: a processor with it has them.
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor was just asked.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}

pub(crate) use with_avx2;
