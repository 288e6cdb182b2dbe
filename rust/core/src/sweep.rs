//! A parallel loop that starts its steps in order.
//!
//! rayon's own iterators hand out halves; a sweep over an image wants the
//! opposite: all threads near one front, so that what lies behind it can be
//! freed, and the first error in order of the steps, whatever thread met it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::{Error, Result, Watch};

/// Calls `body(state, i)` for `i` in `0..n`, in ascending order of start, on
/// every thread of the current pool; each thread makes one `state`.
///
/// A step that fails stops later ones from starting. Every earlier step has
/// started by then and runs to its end, so the error returned (the one of the
/// smallest `i`) does not depend on the number of threads.
pub fn sweep<S>(
    n: usize,
    watch: &Watch,
    init: impl Fn() -> S + Sync,
    body: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let first: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    rayon::broadcast(|_| {
        let mut state = init();
        while !stop.load(Relaxed) {
            let i = next.fetch_add(1, Relaxed);
            if i >= n {
                break;
            }
            if let Err(error) = watch.check().and_then(|()| body(&mut state, i)) {
                stop.store(true, Relaxed);
                keep_first(&first, i, error);
            }
        }
    });
    let first = first.into_inner().unwrap_or_else(|e| e.into_inner());
    first.map_or(Ok(()), |(_, error)| Err(error))
}

fn keep_first(first: &Mutex<Option<(usize, Error)>>, i: usize, error: Error) {
    let mut first = first.lock().unwrap_or_else(|e| e.into_inner());
    if first.as_ref().is_none_or(|(j, _)| i < *j) {
        *first = Some((i, error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(n: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .expect("a pool")
    }

    #[test]
    fn every_step_runs_once_and_the_first_error_wins() {
        for threads in [1, 2, 5] {
            pool(threads).install(|| {
                let watch = Watch::default();
                let hits: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
                let body = |_: &mut (), i: usize| {
                    hits[i].fetch_add(1, Relaxed);
                    Ok(())
                };
                sweep(1000, &watch, || (), body).expect("no step fails");
                assert!(hits.iter().all(|h| h.load(Relaxed) == 1));

                let fail = |_: &mut (), i: usize| {
                    if i % 100 == 37 {
                        return Err(Error::Shape {
                            what: "step",
                            expected: 0,
                            found: i,
                        });
                    }
                    Ok(())
                };
                let error = sweep(1000, &watch, || (), fail).expect_err("steps fail");
                assert_eq!(error.to_string(), "step: expected 0, got 37");
            });
        }
    }

    #[test]
    fn a_cancelled_watch_stops_the_sweep() {
        let watch = Watch::default();
        watch.cancel();
        let error = sweep(10, &watch, || (), |_, _| Ok(())).expect_err("cancelled");
        assert!(matches!(error, Error::Cancelled));
    }
}
