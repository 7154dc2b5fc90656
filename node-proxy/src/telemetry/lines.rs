//! Lines on their way into a sink that may fail: each is in it whole and counted as written, or is counted as lost.
//!
//! A full disk may take a part of what is written, and so tear a line. The torn one is lost, and the next one begins on a
//! line of its own. Nothing is written twice, and nothing piles up. Start at [`Lines::push`].

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::metrics::Counter;

/// Lines are handed to the sink when so many bytes wait, if not earlier: some hundred lines a system call.
const WRITE_BYTES: usize = 64 << 10;

pub(super) struct Lines {
    sink: Box<dyn Write + Send>,
    /// Whole lines, with their ends.
    waiting: Vec<u8>,
    /// What the sink has last is a part of a line.
    torn: bool,
    written: Counter,
    lost: Counter,
}

impl Lines {
    /// `torn`: what the sink has already ends within a line.
    pub(super) fn new(sink: Box<dyn Write + Send>, torn: bool, written: Counter, lost: Counter) -> Self {
        Self { sink, waiting: Vec::with_capacity(WRITE_BYTES), torn, written, lost }
    }

    /// Adds a line, which `format` appends without its end.
    pub(super) fn push<E>(&mut self, format: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) {
        let before = self.waiting.len();
        if format(&mut self.waiting).is_err() {
            self.waiting.truncate(before);
            self.lost.increment();
            return;
        }
        self.waiting.push(b'\n');
        if self.waiting.len() >= WRITE_BYTES {
            self.flush();
        }
    }

    /// Hands over all that waits. What the sink does not take is given up.
    pub(super) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if self.torn {
            self.torn = take(&mut self.sink, b"\n") == 0;
        }
        let taken = if self.torn { 0 } else { take(&mut self.sink, &self.waiting) };
        let (taken, left) = self.waiting.split_at(taken);
        self.torn |= taken.last().is_some_and(|&byte| byte != b'\n');
        // The end of a torn line is among what is left.
        self.written.add(ends(taken));
        self.lost.add(ends(left));
        self.waiting.clear();
    }
}

fn ends(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// How many bytes the sink took before it failed, if it did.
fn take(sink: &mut dyn Write, bytes: &[u8]) -> usize {
    let mut taken = 0;
    while taken < bytes.len() {
        match sink.write(&bytes[taken..]) {
            Ok(0) => break,
            Ok(more) => taken += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    taken
}

/// Opens a file for appending; also says whether what it has ends within a line, as after an end on a full disk.
pub(super) fn append(path: &Path) -> io::Result<(File, bool)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let found = file.metadata()?;
    let torn = found.is_file() && found.len() > 0 && !ends_a_line(path)?;
    Ok((file, torn))
}

fn ends_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use proptest::prelude::*;

    use super::*;

    /// Has room for so many bytes; takes what fits and fails then, as a full disk does.
    #[derive(Default)]
    struct Disk {
        has: Vec<u8>,
        room: usize,
    }

    struct Shared(Arc<Mutex<Disk>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock();
            let fits = bytes.len().min(disk.room);
            if fits == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            disk.room -= fits;
            disk.has.extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Bench {
        disk: Arc<Mutex<Disk>>,
        lines: Lines,
        written: Counter,
        lost: Counter,
    }

    fn bench(room: usize) -> Bench {
        let (written, lost) = (Counter::default(), Counter::default());
        let disk = Arc::new(Mutex::new(Disk { has: Vec::new(), room }));
        let sink = Box::new(Shared(Arc::clone(&disk)));
        let lines = Lines::new(sink, false, written.clone(), lost.clone());
        Bench { disk, lines, written, lost }
    }

    impl Bench {
        fn write(&mut self, lines: &[&str]) {
            for line in lines {
                self.lines.push(|waiting| waiting.write_all(line.as_bytes()));
            }
            self.lines.flush();
        }
        fn text(&self) -> String {
            String::from_utf8(self.disk.lock().has.clone()).unwrap()
        }
        fn counts(&self) -> (u64, u64) {
            (self.written.value(), self.lost.value())
        }
    }

    #[test]
    fn a_line_after_a_torn_one_is_whole_and_the_torn_one_counts_as_lost() {
        let mut bench = bench(8);
        bench.write(&["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        assert_eq!((bench.text().as_str(), bench.counts()), ("{\"a\":1}\n", (1, 2)));
        bench.disk.lock().room = 3;
        bench.write(&["{\"d\":4}"]);
        assert_eq!((bench.text().as_str(), bench.counts()), ("{\"a\":1}\n{\"d", (1, 3)));
        // Not even the end of the torn line fits.
        bench.write(&["{\"e\":5}"]);
        assert_eq!(bench.counts(), (1, 4));
        bench.disk.lock().room = 100;
        bench.write(&["{\"f\":6}", "{\"g\":7}"]);
        assert_eq!(bench.text(), "{\"a\":1}\n{\"d\n{\"f\":6}\n{\"g\":7}\n");
        assert_eq!(bench.counts(), (3, 4));
    }

    proptest! {
        #[test]
        fn every_line_is_whole_in_the_sink_or_counted_as_lost(
            rounds in proptest::collection::vec((0..5_usize, 0..60_usize), 1..20),
        ) {
            let mut bench = bench(0);
            let mut pushed = 0;
            for (lines, room) in rounds {
                bench.disk.lock().room = room;
                let lines: Vec<String> = (0..lines).map(|n| format!("<line {}>", pushed + n)).collect();
                bench.write(&lines.iter().map(String::as_str).collect::<Vec<_>>());
                pushed += lines.len();
            }
            let text = bench.text();
            let whole = |line: &&str| line.starts_with('<') && line.ends_with('>');
            let ended = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
            let found = ended.lines().filter(whole).count() as u64;
            let (written, lost) = bench.counts();
            prop_assert_eq!(written + lost, pushed as u64);
            // A line of which only the end was missing is there after all.
            prop_assert!(found >= written, "{} of {} written: {}", found, written, text);
            // Two never share a line.
            prop_assert!(ended.lines().all(|line| line.matches('<').count() <= 1), "{}", text);
        }
    }

    #[test]
    fn a_file_that_ends_within_a_line_is_known_as_such() {
        let directory = tempfile::tempdir().unwrap();
        for (text, torn) in [("", false), ("whole\n", false), ("whole\nhal", true)] {
            let path = directory.path().join("log");
            std::fs::write(&path, text).unwrap();
            assert_eq!(append(&path).unwrap().1, torn, "{text:?}");
        }
        assert!(!append(Path::new("/dev/full")).unwrap().1);
        assert!(!append(&directory.path().join("new")).unwrap().1);
    }
}
