//! The file access log: a bounded queue and one writer thread, so that a slow disk never blocks traffic.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines waiting for the writer; more are dropped and counted.
const QUEUE: usize = 8192;
/// Bytes gathered before a write (Envoy's `--file-flush-min-size-kb` default).
const BUFFER: usize = 64 * 1024;

#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
}

enum Message {
    Line(Vec<u8>),
    /// Write everything out, then answer.
    Flush(SyncSender<()>),
}

/// A file (or `/dev/stdout`, `/dev/stderr`) that lines are appended to. Dropping it writes what is queued.
pub struct AccessLogFile {
    shared: Arc<Shared>,
    sender: Option<SyncSender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl AccessLogFile {
    /// Opens the file. `flush_interval` bounds how long a line waits (Envoy's default: 10 s; 1 s under Istio).
    ///
    /// # Errors
    /// The file cannot be opened, or the thread cannot be made.
    pub fn open(path: impl Into<PathBuf>, flush_interval: Duration) -> io::Result<Self> {
        let path = path.into();
        let out: Box<dyn Write + Send> = match path.to_str() {
            // Containers may not open these by path, so the descriptors are used.
            Some("/dev/stdout") => Box::new(io::stdout()),
            Some("/dev/stderr") => Box::new(io::stderr()),
            _ => Box::new(open(&path)?),
        };
        let (sender, receiver) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("access_log".to_owned())
            .spawn(move || write(&receiver, &theirs, &path, out, flush_interval))?;
        Ok(Self {
            shared,
            sender: Some(sender),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues a formatted line, with its line end. Never blocks: a full queue drops it.
    pub fn write(&self, line: Vec<u8>) {
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|s| s.try_send(Message::Line(line)).is_ok());
        if !sent {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes out what is queued, and waits for it, at most for `most`. For the end of the process.
    pub fn flush(&self, most: Duration) {
        let (done, wait) = sync_channel(1);
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|s| s.try_send(Message::Flush(done)).is_ok());
        if sent {
            let _ = wait.recv_timeout(most);
        }
    }

    /// Lines lost to a full queue or a failed write.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Opens the path anew before the next write (SIGUSR1, `/reopen_logs`).
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
    }
}

impl Drop for AccessLogFile {
    fn drop(&mut self) {
        self.sender = None;
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // The writer ends when the queue is empty; it does not panic.
            let _ = thread.join();
        }
    }
}

fn write(
    lines: &Receiver<Message>,
    shared: &Shared,
    path: &Path,
    out: Box<dyn Write + Send>,
    interval: Duration,
) {
    let device = matches!(path.to_str(), Some("/dev/stdout" | "/dev/stderr"));
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let mut due = Instant::now() + interval;
    loop {
        let received = lines.recv_timeout(due.saturating_duration_since(Instant::now()));
        if shared.reopen.swap(false, Ordering::AcqRel) && !device {
            match open(path) {
                Ok(file) => {
                    let _ = out.flush();
                    out = BufWriter::with_capacity(BUFFER, Box::new(file));
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "access log: reopen failed")
                }
            }
        }
        match received {
            Ok(Message::Flush(done)) => {
                let _ = out.flush();
                let _ = done.send(());
            }
            Ok(Message::Line(line)) => {
                if out.write_all(&line).is_err() {
                    shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let _ = out.flush();
                return;
            }
        }
        if Instant::now() >= due {
            let _ = out.flush();
            due = Instant::now() + interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_all_lines_and_reopens() {
        let path = std::env::temp_dir().join(format!("fairway-access-{}.log", std::process::id()));
        let moved = path.with_extension("old");
        let log = AccessLogFile::open(&path, Duration::from_secs(10)).unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.write(b"one\n".to_vec());
        log.write(b"two\n".to_vec());
        log.flush(Duration::from_secs(20));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        log.write(b"three\n".to_vec());
        drop(log);
        let all = std::fs::read_to_string(&path).unwrap();
        assert_eq!(all, "one\ntwo\nthree\n");
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&moved).unwrap();
    }

    #[test]
    fn an_unwritable_path_is_an_error() {
        assert!(AccessLogFile::open("/nonexistent/dir/log", Duration::from_secs(1)).is_err());
    }
}
