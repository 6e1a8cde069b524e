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

/// Gives back what the calling thread has freed and keeps to use again. A thread looks that over after so many bytes
/// that it allocates, so that one that has had much to do, and has nothing more, would keep megabytes.
pub fn flush_thread_cache() {
    let name = c"thread.tcache.flush";
    let (none, size) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the name is a string that ends in NUL. This control reads and writes no value, and is given none. What it
    // does is safe at any time ("thread.tcache.flush" in jemalloc's manual); without a cache it fails, and nothing is done.
    unsafe { tikv_jemalloc_sys::mallctl(name.as_ptr(), none, size, std::ptr::null_mut(), 0) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_freed_is_given_back_and_blocks_in_use_stay() {
        let kept: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        drop(vec![vec![0_u8; 1000]; 1000]);
        super::flush_thread_cache();
        assert!(
            kept.iter()
                .enumerate()
                .all(|(n, text)| *text == n.to_string())
        );
    }
}
