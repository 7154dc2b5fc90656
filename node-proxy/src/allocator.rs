//! Which allocator, and how soon it gives memory back: a storm of connections must leave nothing behind.
//!
//! jemalloc, because it returns what is free also when nobody allocates any more: a thread of its own does it. The
//! figures that chose it are in `docs/benchmarks.md`, memory.

use std::ffi::c_char;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// - `background_thread`: gives free memory back while the process is idle.
/// - `dirty_decay_ms`: ... within about a second after it was freed, soon enough for "back to its base after a storm" and long
///   enough that a loaded process does not return pages only to fault them in again. `muzzy_decay_ms`: at once and
///   for good (MADV_DONTNEED), so that it shows as free.
/// - `percpu_arena`: one arena per core instead of four, and so fewer half-empty pages.
/// - `lg_tcache_max`: threads keep pieces up to 64 KiB, the size of a tunnel's read buffer, which comes and goes with every
///   wake-up.
const OPTIONS: &std::ffi::CStr =
    c"background_thread:true,max_background_threads:1,dirty_decay_ms:1000,muzzy_decay_ms:0,percpu_arena:percpu,lg_tcache_max:16";

/// Where jemalloc looks for its options when it starts, before `main`.
// SAFETY: jemalloc declares the symbol as `const char *`; a reference to a nul-terminated constant is one.
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: Option<&'static c_char> = Some(unsafe { &*OPTIONS.as_ptr() });
