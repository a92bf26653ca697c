//! Reads a JPEG's markers from first to last without decoding a pixel.
//!
//! Decoders show what they can of a file that was cut off, which for a model would be half a relief: here the end mark
//! is looked for first. On the way everything is learnt that decides whether and how to decode.

use std::io::{BufRead, ErrorKind};

use super::{Fault, read_fault};

/// What the markers of one JPEG say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Markers {
    pub(super) width: u16,
    pub(super) height: u16,
    /// Sampling factors of each component, horizontal and vertical.
    pub(super) sampling: Vec<(u8, u8)>,
    /// The pixels come in several scans, so that coefficients of the whole picture must be kept while decoding.
    pub(super) has_many_scans: bool,
    /// An Adobe marker is there; files with four components then store inverted ink.
    pub(super) is_adobe: bool,
    /// The EXIF block, from its TIFF header on.
    pub(super) exif: Option<Vec<u8>>,
}

impl Markers {
    /// Bytes of the coefficients of the whole picture, two each.
    pub(super) fn coefficient_bytes(&self) -> u64 {
        let (h_max, v_max) = self.sampling.iter().fold((1, 1), |(h, v), &(x, y)| (h.max(x), v.max(y)));
        let units = u64::from(self.width).div_ceil(u64::from(h_max) * 8)
            * u64::from(self.height).div_ceil(u64::from(v_max) * 8);
        let blocks: u64 = self.sampling.iter().map(|&(h, v)| u64::from(h) * u64::from(v)).sum();
        units * blocks * 64 * 2
    }

    /// Reads from the first byte of the file to the end mark of its first picture; what stands behind that (a second
    /// picture, a phone's film clip) is of no interest.
    ///
    /// # Errors
    /// [`Fault::Truncated`] when the file ends before, [`Fault::Unsupported`] for kinds that no decoder here takes.
    pub(super) fn read(source: &mut impl BufRead) -> Result<Self, Fault> {
        let mut markers = Self::default();
        let mut scans = 0;
        let mut marker = next_marker(source)?;
        loop {
            match marker {
                // Start of image, restarts and the obsolete TEM stand alone.
                0xd8 | 0xd0..=0xd7 | 0x01 => {}
                0xd9 => break,
                0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => markers.frame(marker, &segment(source)?)?,
                0xe1 => {
                    let segment = segment(source)?;
                    if let Some(tiff) = segment.strip_prefix(b"Exif\0\0")
                        && markers.exif.is_none()
                    {
                        markers.exif = Some(tiff.to_vec());
                    }
                }
                0xee => markers.is_adobe |= segment(source)?.starts_with(b"Adobe"),
                0xda => {
                    let components = segment(source)?.first().copied().unwrap_or_default();
                    scans += 1;
                    markers.has_many_scans |= scans > 1 || usize::from(components) < markers.sampling.len();
                }
                _ => drop(segment(source)?),
            }
            marker = next_marker(source)?;
        }
        if markers.sampling.is_empty() || scans == 0 {
            return Err(Fault::Truncated("the JPEG has an end mark but no pixels".to_owned()));
        }
        Ok(markers)
    }

    /// A frame header: the size and the components.
    fn frame(&mut self, marker: u8, segment: &[u8]) -> Result<(), Fault> {
        match marker {
            0xc0..=0xc2 => {}
            0xc3 | 0xc7 | 0xcb | 0xcf => {
                return Err(Fault::Unsupported("a lossless JPEG".to_owned()));
            }
            0xc9 | 0xca | 0xcd | 0xce => {
                return Err(Fault::Unsupported("a JPEG with arithmetic coding".to_owned()));
            }
            _ => return Err(Fault::Unsupported("a hierarchical JPEG".to_owned())),
        }
        let &[precision, h1, h0, w1, w0, components, ref rest @ ..] = segment else {
            return Err(Fault::Truncated("the JPEG's frame header is too short".to_owned()));
        };
        if precision != 8 {
            return Err(Fault::Unsupported(format!("a JPEG with {precision} bits a sample")));
        }
        if !matches!(components, 1 | 3 | 4) {
            return Err(Fault::Unsupported(format!("a JPEG with {components} components")));
        }
        self.width = u16::from_be_bytes([w1, w0]);
        self.height = u16::from_be_bytes([h1, h0]);
        self.sampling = rest
            .as_chunks::<3>()
            .0
            .iter()
            .take(usize::from(components))
            .map(|&[_, factors, _]| (factors >> 4, factors & 15))
            .collect();
        let is_sound = self.sampling.iter().all(|&(h, v)| (1..=4).contains(&h) && (1..=4).contains(&v));
        if self.sampling.len() != usize::from(components) || !is_sound {
            return Err(Fault::Truncated("the JPEG's frame header contradicts itself".to_owned()));
        }
        self.has_many_scans |= marker == 0xc2;
        Ok(())
    }
}

/// Skips to the next marker, over entropy-coded data, stuffed zeros, fill bytes and stray ones alike.
fn next_marker(source: &mut impl BufRead) -> Result<u8, Fault> {
    loop {
        let buffer = fill(source)?;
        match buffer.iter().position(|&byte| byte == 0xff) {
            None => {
                let bytes = buffer.len();
                source.consume(bytes);
                continue;
            }
            Some(place) => source.consume(place + 1),
        }
        let mut byte = 0xff;
        while byte == 0xff {
            byte = fill(source)?[0];
            source.consume(1);
        }
        if byte != 0 && !(0xd0..=0xd7).contains(&byte) {
            return Ok(byte);
        }
    }
}

/// The next bytes of the file, at least one.
fn fill(source: &mut impl BufRead) -> Result<&[u8], Fault> {
    let buffer = source.fill_buf().map_err(read_fault)?;
    if buffer.is_empty() { Err(end()) } else { Ok(buffer) }
}

/// The payload of the segment that begins here, without its two bytes of length.
fn segment(source: &mut impl BufRead) -> Result<Vec<u8>, Fault> {
    let mut length = [0; 2];
    read(source, &mut length)?;
    let Some(bytes) = u16::from_be_bytes(length).checked_sub(2) else {
        return Err(Fault::Truncated("a segment of the JPEG has an impossible length".to_owned()));
    };
    let mut segment = vec![0; usize::from(bytes)];
    read(source, &mut segment)?;
    Ok(segment)
}

fn read(source: &mut impl BufRead, into: &mut [u8]) -> Result<(), Fault> {
    source.read_exact(into).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => end(),
        _ => read_fault(error),
    })
}

fn end() -> Fault {
    Fault::Truncated("the JPEG file ends before its end mark".to_owned())
}
