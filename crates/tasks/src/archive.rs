//! The archive of a batch: a zip of its models, stored and not deflated, since textures are compressed already.
//!
//! The same models under the same names give the same bytes: every entry carries the same time and no owner. Models
//! pass through one after the other; none is held as a whole.

use std::io::{self, Read, Seek, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Most characters of a file's name that an entry keeps.
const NAME_CHARS_MAX: usize = 80;

/// An archive that is being written. Without [`Archive::finish`] it is no valid zip.
#[derive(Debug)]
pub struct Archive<W: Write + Seek> {
    zip: ZipWriter<W>,
}

impl<W: Write + Seek> Archive<W> {
    /// Begins an archive at the start of `to`.
    pub fn new(to: W) -> Self {
        Self { zip: ZipWriter::new(to) }
    }

    /// Adds a model as [`entry_name`] says and returns the name of its entry.
    ///
    /// # Errors
    /// Those of `model` and of the writer; `AlreadyExists` when number and name together come twice.
    pub fn add(&mut self, number: u32, source_name: &str, mut model: impl Read) -> io::Result<String> {
        let name = entry_name(number, source_name);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644);
        self.zip.start_file(name.as_str(), options)?;
        io::copy(&mut model, &mut self.zip)?;
        Ok(name)
    }

    /// Writes the directory of the archive and gives the writer back.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(self) -> io::Result<W> {
        Ok(self.zip.finish()?)
    }
}

/// The name of a model's entry: `NNN-<name>.glb`, from the number that keeps it unique and in order (more digits from
/// 1000 on) and the picture's name without folders and ending.
///
/// Letters and digits of every script, `-`, `_` and inner dots stay; anything else becomes `-`, so that the name is
/// harmless on every file system and in every shell.
#[must_use]
pub fn entry_name(number: u32, source_name: &str) -> String {
    let name = source_name.rsplit(['/', '\\']).next().unwrap_or_default();
    let stem = match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && ending.len() <= 5 => stem,
        _ => name,
    };
    let mut clean = String::new();
    for character in stem.chars().take(NAME_CHARS_MAX) {
        match character {
            '_' | '.' => clean.push(character),
            _ if character.is_alphanumeric() => clean.push(character),
            _ if clean.ends_with('-') => {}
            _ => clean.push('-'),
        }
    }
    let clean = clean.trim_matches(['-', '.']);
    format!("{number:03}-{}.glb", if clean.is_empty() { "model" } else { clean })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn archive(models: &[(u32, &str, &[u8])]) -> Vec<u8> {
        let mut archive = Archive::new(Cursor::new(Vec::new()));
        for &(number, name, model) in models {
            archive.add(number, name, model).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    #[test]
    fn entries_are_stored_in_order_and_read_back_whole() {
        let large = vec![7; 300_000];
        let bytes = archive(&[(1, "gear.png", b"one"), (2, "maze.jpg", &large)]);
        let mut zip = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
        assert_eq!(zip.len(), 2);
        for (i, (name, content)) in
            [("001-gear.glb", b"one".as_slice()), ("002-maze.glb", &large)].into_iter().enumerate()
        {
            let mut entry = zip.by_index(i).unwrap();
            assert_eq!(entry.name().unwrap(), name);
            assert_eq!(entry.compression(), CompressionMethod::Stored);
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            assert_eq!(read, content);
        }
    }

    #[test]
    fn the_same_models_give_the_same_bytes() {
        let models: &[(u32, &str, &[u8])] = &[(1, "a.png", b"aaaa"), (2, "b.png", b"bb")];
        assert_eq!(archive(models), archive(models));
    }

    #[test]
    fn the_same_entry_twice_is_an_error() {
        let mut archive = Archive::new(Cursor::new(Vec::new()));
        archive.add(1, "a.png", b"x".as_slice()).unwrap();
        assert!(archive.add(1, "a.png", b"y".as_slice()).is_err());
    }

    #[test]
    fn names_are_harmless_whatever_was_uploaded() {
        let cases = [
            (7, "gear.png", "007-gear.glb"),
            (1234, "gear.png", "1234-gear.glb"),
            (1, "../../etc/passwd", "001-passwd.glb"),
            (1, "C:\\Users\\x\\my photo (2).JPEG", "001-my-photo-2.glb"),
            (1, "Straße über Köln.webp", "001-Straße-über-Köln.glb"),
            (1, "v1.2.final.png", "001-v1.2.final.glb"),
            (1, "...", "001-model.glb"),
            (1, "", "001-model.glb"),
            (1, "a\u{0}b\nc\u{202e}d.gif", "001-a-b-c-d.glb"),
            (1, ".png", "001-png.glb"),
        ];
        for (number, name, expected) in cases {
            assert_eq!(entry_name(number, name), expected, "{name:?}");
        }
        assert_eq!(entry_name(1, &"x".repeat(500)).chars().count(), 80 + "001-.glb".len());
    }
}
