//! The allocator of the `fairway` binary: jemalloc, with settings that suit a proxy.
//!
//! A configuration is decoded in one burst and mostly thrown away: glibc keeps what was freed below the last live block,
//! jemalloc gives it back, and costs a request about a tenth fewer instructions. A release linked against musl does not
//! get musl's allocator either.

/// jemalloc for the whole process.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What is not jemalloc's default; the environment's `_RJEM_MALLOC_CONF` goes before it. "TUNING.md" and `MALLOC_CONF`
/// in jemalloc's manual say what each is.
///
/// - Pages that are no longer used go back within 300 ms instead of 10 s.
/// - A request takes and gives back a few blocks of several KiB, and a worker has many requests in flight: with the usual
///   20 blocks a size in a thread's cache, looked through after every 64 KiB, a fiftieth of a request's instructions are
///   the cache's.
///
/// Without it a proxy works as well, a little slower.
// SAFETY: the symbol is jemalloc's own for this purpose: a pointer to a string that ends in NUL and lives for ever, read
// once and never written. Nobody else in this process defines it: jemalloc's own definition is weak.
#[unsafe(export_name = "_rjem_malloc_conf")]
#[used]
pub static SETTINGS: &[u8; 103] =
    b"dirty_decay_ms:300,tcache_nslots_small_min:80,tcache_nslots_small_max:400,tcache_gc_incr_bytes:1048576\0";
