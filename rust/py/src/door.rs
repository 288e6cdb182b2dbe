//! The one door between Python and the core.
//!
//! [`run`] alone releases the interpreter, picks the pool, hears Ctrl-C and
//! maps the error. The work runs on the pool's threads while the calling thread
//! waits for it, waking now and then to ask Python for signals and to report
//! progress; a pool thread never touches the interpreter.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use stfast_core::{Result, Watch};

use crate::error::{bad_workers, no_threads, to_python};

/// Time between two looks at signals and progress.
const LOOK: Duration = Duration::from_millis(50);

/// Runs a kernel on `workers` threads without holding the interpreter.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    workers: usize,
    progress: Option<Py<PyAny>>,
    kernel: impl FnOnce(&Watch) -> Result<T> + Send,
) -> PyResult<T> {
    let pool = pool(py, workers)?;
    let watch = Watch::default();
    let result = py.detach(|| wait(&pool, &watch, progress.as_ref(), kernel))?;
    if let Some(progress) = progress {
        progress.call1(py, (watch.done(),))?;
    }
    Ok(result)
}

fn wait<T: Send>(
    pool: &ThreadPool,
    watch: &Watch,
    progress: Option<&Py<PyAny>>,
    kernel: impl FnOnce(&Watch) -> Result<T> + Send,
) -> PyResult<T> {
    let (sender, receiver) = channel();
    let mut interrupt = None;
    let result = pool.in_place_scope(|scope| {
        // A failed send means that nobody waits any more: nothing to tell.
        scope.spawn(move |_| drop(sender.send(kernel(watch))));
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(result) => return Some(result),
                // The kernel panicked: the scope re-raises it on its way out.
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if interrupt.is_some() => {}
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = Python::attach(|py| look(py, watch, progress)) {
                        interrupt = Some(error);
                        watch.cancel();
                    }
                }
            }
        }
    });
    match (interrupt, result) {
        (Some(interrupt), _) => Err(interrupt),
        (None, Some(result)) => result.map_err(to_python),
        (None, None) => unreachable!("the scope re-raised the kernel's panic"),
    }
}

fn look(py: Python<'_>, watch: &Watch, progress: Option<&Py<PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    if let Some(progress) = progress {
        progress.call1(py, (watch.done(),))?;
    }
    Ok(())
}

/// A pool with the process and the number of threads it was made for.
struct Slot {
    process: u32,
    workers: usize,
    pool: Arc<ThreadPool>,
}

/// The pool of this process with that many threads, made when it changes.
///
/// The threads of a parent process do not exist after `fork`, so a pool that
/// came from one is left alone: dropping it would wait for them. The lock is
/// only held while attached to the interpreter, hence never across a `fork`.
fn pool(_py: Python<'_>, workers: usize) -> PyResult<Arc<ThreadPool>> {
    static SLOT: Mutex<Option<Slot>> = Mutex::new(None);
    if workers < 1 {
        return Err(bad_workers(workers));
    }
    let process = std::process::id();
    let mut slot = SLOT.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(held) = slot.as_ref()
        && (held.process, held.workers) == (process, workers)
    {
        return Ok(Arc::clone(&held.pool));
    }
    let builder = ThreadPoolBuilder::new().num_threads(workers);
    let builder = builder.thread_name(|i| format!("stfast-{i}"));
    let pool = Arc::new(builder.build().map_err(no_threads)?);
    let made = Slot {
        process,
        workers,
        pool: Arc::clone(&pool),
    };
    if let Some(old) = slot.replace(made)
        && old.process != process
    {
        std::mem::forget(old);
    }
    Ok(pool)
}
