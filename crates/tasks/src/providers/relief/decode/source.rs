//! The picture's file behind one buffer. A decoder looks ahead by seeking back, at every few bytes; the standard buffered
//! reader gives its buffer up at every seek, and so reads a file of a few MiB many thousand times over. This one gives it
//! up only for what lies outside.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

const BUFFER_BYTES: usize = 256 << 10;

/// Reads a file from its start.
pub(super) struct Source {
    file: BufReader<File>,
    /// Where the next byte stands, so that asking for it is no system call either.
    position: u64,
}

impl Source {
    /// Of a file that nothing has been read of yet.
    pub(super) fn new(file: File) -> Self {
        Self { file: BufReader::with_capacity(BUFFER_BYTES, file), position: 0 }
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(into)?;
        self.position += bytes as u64;
        Ok(bytes)
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.file.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.file.consume(bytes);
        self.position += bytes as u64;
    }
}

impl Seek for Source {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let by = match to {
            SeekFrom::Current(by) => Some(by),
            SeekFrom::Start(place) => place.checked_signed_diff(self.position),
            SeekFrom::End(_) => None,
        };
        self.position = match by.and_then(|by| Some((by, self.position.checked_add_signed(by)?))) {
            Some((by, place)) => {
                self.file.seek_relative(by)?;
                place
            }
            // From the end, which only the file knows, or to no place at all, which it says itself.
            None => self.file.seek(to)?,
        };
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_seeking_finds_the_byte_that_stands_there() {
        let bytes: Vec<u8> = (0..2 * BUFFER_BYTES + 1000).map(|n| (n % 251) as u8).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, &bytes).unwrap();
        let mut source = Source::new(File::open(&path).unwrap());
        let (length, far) = (bytes.len() as i64, BUFFER_BYTES as i64 + 77);
        for to in [
            SeekFrom::Start(5),
            SeekFrom::Current(-3),
            SeekFrom::Current(far),
            SeekFrom::Current(-far),
            SeekFrom::End(-9),
            SeekFrom::Start(far as u64),
            SeekFrom::End(-length),
        ] {
            let place = source.seek(to).unwrap();
            assert_eq!(source.stream_position().unwrap(), place, "{to:?}");
            let mut found = [0; 9];
            source.read_exact(&mut found).unwrap();
            assert_eq!(found, bytes[place as usize..][..9], "{to:?}");
            source.consume(0);
            assert_eq!(source.fill_buf().unwrap().first(), bytes.get(place as usize + 9), "{to:?}");
        }
        let before = source.stream_position().unwrap();
        assert!(source.seek(SeekFrom::Current(-length)).is_err());
        assert_eq!(source.stream_position().unwrap(), before, "a seek to before the start moves nothing");
        assert_eq!(source.seek(SeekFrom::End(3)).unwrap(), length as u64 + 3);
        assert_eq!(source.read(&mut [0]).unwrap(), 0, "behind the end there is nothing");
    }
}
