//! Where tests may end a process, as `kill -9` would: between any two steps of storing, deleting and
//! having back. A binary that was not built for tests has none of it.

#[doc(hidden)]
pub use fail;

/// A point between two steps, by name, given as to `format!`. `FAILPOINTS='NAME=return'` ends the process there,
/// `NAME=sleep(1000)` stops it for a second, `NAME=1*off->return` passes it once first.
#[macro_export]
macro_rules! crash_point {
    ($($name:tt)+) => {
        let _used_in_any_build = || format!($($name)+);
        $crate::crash::fail::fail_point!(&format!($($name)+), |_| std::process::abort());
    };
}

/// The same in the midst of a task: stopped there it holds up none of the others, as it would where
/// tasks share their threads.
#[macro_export]
macro_rules! crash_point_apart {
    ($name:literal) => {
        if $crate::crash::fail::has_failpoints() {
            // It cannot fail: what panics there ends the process.
            let at = tokio::task::spawn_blocking(|| {
                $crate::crash_point!($name);
            });
            drop(at.await);
        }
    };
}
