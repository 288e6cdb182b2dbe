//! Compiles `images/jpeg.c` against the libjpeg-turbo that turbojpeg-sys has built.

fn main() {
    println!("cargo::rerun-if-changed=src/images/jpeg.c");
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    cc::Build::new()
        .file("src/images/jpeg.c")
        .includes(include.split(',').filter(|path| !path.is_empty()))
        .warnings(true)
        .compile("stfast_jpeg");
}
