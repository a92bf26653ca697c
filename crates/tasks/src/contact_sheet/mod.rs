//! One picture that shows a whole batch: every preview in a grid with its name, and in the place of what failed, why.
//!
//! Previews are given one after the other and only their small copies are kept, so that a batch of any size fits into
//! memory: at most [`CELLS_MAX`] are shown, and the heading says how many are not.

mod face;

use std::io;

use image::codecs::png::PngEncoder;
use image::imageops::FilterType;
use image::{ExtendedColorType, ImageEncoder as _, ImageFormat, RgbImage};

/// Most previews on one sheet.
pub const CELLS_MAX: usize = 1000;

const MARGIN: usize = 24;
const GAP: usize = 16;
/// Dots of the heading are squares of this many pixels.
const HEADING_SCALE: usize = 3;

const PAGE: [u8; 3] = [0xf6, 0xf6, 0xf4];
const INK: [u8; 3] = [0x2b, 0x2f, 0x36];
const FAILED_PAPER: [u8; 3] = [0xf7, 0xe3, 0xe0];
const FAILED_INK: [u8; 3] = [0xa3, 0x2a, 0x20];

/// A sheet that is being filled, from the top left.
#[derive(Debug)]
pub struct ContactSheet {
    total: usize,
    filled: usize,
    columns: usize,
    /// Side of a preview on the sheet, in pixels.
    thumb: usize,
    /// Pixels a dot of a caption.
    scale: usize,
    page: Page,
}

impl ContactSheet {
    /// A sheet for `total` models and failures with this heading. More than [`CELLS_MAX`] are counted, not shown.
    #[must_use]
    pub fn new(heading: &str, total: usize) -> Self {
        let cells = total.clamp(1, CELLS_MAX);
        let (thumb, scale) = match cells {
            ..=48 => (256, 2),
            49..=300 => (160, 1),
            _ => (100, 1),
        };
        let columns = ((cells as f64 * 4.0 / 3.0).sqrt().ceil() as usize).clamp(1, cells.max(3));
        let rows = cells.div_ceil(columns);
        let cell_height = thumb + caption_height(scale) + GAP;
        let top = MARGIN + face::HEIGHT * HEADING_SCALE + GAP;
        let mut page = Page::new(2 * MARGIN + columns * (thumb + GAP) - GAP, top + rows * cell_height - GAP + MARGIN);
        let heading = match total.saturating_sub(CELLS_MAX) {
            0 => heading.to_owned(),
            more => format!("{heading}, {more} not shown"),
        };
        let chars = (page.width - 2 * MARGIN) / (face::ADVANCE * HEADING_SCALE);
        page.text(MARGIN, MARGIN, &shortened(&heading, chars), HEADING_SCALE, INK);
        Self { total, filled: 0, columns, thumb, scale, page }
    }

    /// Puts a model's preview into the next cell. A preview that cannot be read is shown as such.
    pub fn add_model(&mut self, name: &str, preview_png: &[u8]) {
        match image::load_from_memory_with_format(preview_png, ImageFormat::Png) {
            Ok(preview) => {
                if let Some((x, y)) = self.next_cell(name, INK) {
                    let side = self.thumb as u32;
                    self.page.picture(x, y, &preview.resize_to_fill(side, side, FilterType::Triangle).into_rgb8());
                }
            }
            Err(error) => self.add_failure(name, &format!("no preview: {error}")),
        }
    }

    /// Shows in the next cell that there is no model, and why.
    pub fn add_failure(&mut self, name: &str, reason: &str) {
        let (thumb, scale) = (self.thumb, self.scale);
        let Some((x, y)) = self.next_cell(name, FAILED_INK) else {
            return;
        };
        self.page.fill(x, y, thumb, thumb, FAILED_PAPER);
        let cross = thumb / 4;
        self.page.cross(x + (thumb - cross) / 2, y + thumb / 8, cross, thumb / 32, FAILED_INK);
        let line_height = (face::HEIGHT + 2) * scale;
        let inset = thumb / 16;
        let chars = (thumb - 2 * inset) / (face::ADVANCE * scale);
        let top = thumb / 8 + cross + thumb / 12;
        let lines = (thumb - top) / line_height;
        for (i, line) in wrapped(reason, chars, lines).iter().enumerate() {
            self.page.text(x + inset, y + top + i * line_height, line, scale, FAILED_INK);
        }
    }

    /// The sheet as PNG.
    ///
    /// # Errors
    /// When the encoder fails, which memory alone can make it do.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        let mut png = Vec::new();
        PngEncoder::new(&mut png)
            .write_image(&self.page.rgb, self.page.width as u32, self.page.height as u32, ExtendedColorType::Rgb8)
            .map_err(io::Error::other)?;
        Ok(png)
    }

    /// The top left corner of the next cell, its caption written; nothing when the sheet is full.
    fn next_cell(&mut self, name: &str, ink: [u8; 3]) -> Option<(usize, usize)> {
        if self.filled == self.total.min(CELLS_MAX) {
            return None;
        }
        let (column, row) = (self.filled % self.columns, self.filled / self.columns);
        self.filled += 1;
        let x = MARGIN + column * (self.thumb + GAP);
        let top = MARGIN + face::HEIGHT * HEADING_SCALE + GAP;
        let y = top + row * (self.thumb + caption_height(self.scale) + GAP);
        let chars = self.thumb / (face::ADVANCE * self.scale);
        self.page.text(x, y + self.thumb + 3 * self.scale, &shortened(name, chars), self.scale, ink);
        Some((x, y))
    }
}

fn caption_height(scale: usize) -> usize {
    (face::HEIGHT + 3) * scale
}

/// The text in at most `chars` characters, its end kept, since names differ there.
fn shortened(text: &str, chars: usize) -> String {
    let length = text.chars().count();
    if length <= chars {
        return text.to_owned();
    }
    let tail = chars.saturating_sub(2) / 2;
    let head = chars.saturating_sub(2) - tail;
    text.chars().take(head).chain("..".chars()).chain(text.chars().skip(length - tail)).collect()
}

/// The text in lines of at most `chars` characters, broken between words where that is possible, at most `lines_max`.
fn wrapped(text: &str, chars: usize, lines_max: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = shortened(word, chars);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= chars => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    if lines.len() > lines_max {
        lines.truncate(lines_max);
        if let Some(last) = lines.last_mut() {
            *last = format!("{}..", last.chars().take(chars.saturating_sub(2)).collect::<String>());
        }
    }
    lines
}

/// RGB pixels to draw on. What would lie outside is left out.
#[derive(Debug)]
struct Page {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Page {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, rgb: PAGE.repeat(width * height) }
    }

    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, colour: [u8; 3]) {
        for row in y..(y + height).min(self.height) {
            for column in x..(x + width).min(self.width) {
                let start = (row * self.width + column) * 3;
                self.rgb[start..start + 3].copy_from_slice(&colour);
            }
        }
    }

    fn picture(&mut self, x: usize, y: usize, picture: &RgbImage) {
        for (column, row, pixel) in picture.enumerate_pixels() {
            self.fill(x + column as usize, y + row as usize, 1, 1, pixel.0);
        }
    }

    fn text(&mut self, x: usize, y: usize, text: &str, scale: usize, ink: [u8; 3]) {
        for (i, character) in text.chars().enumerate() {
            for (row, bits) in face::glyph(character).into_iter().enumerate() {
                for column in (0..5).filter(|column| bits >> (4 - column) & 1 == 1) {
                    let dot_x = x + (i * face::ADVANCE + column) * scale;
                    self.fill(dot_x, y + row * scale, scale, scale, ink);
                }
            }
        }
    }

    /// Two strokes of this `weight` across a square of this side.
    fn cross(&mut self, x: usize, y: usize, side: usize, weight: usize, ink: [u8; 3]) {
        for step in 0..side {
            self.fill(x + step, y + step, weight, weight, ink);
            self.fill(x + side - 1 - step, y + step, weight, weight, ink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preview(colour: [u8; 3]) -> Vec<u8> {
        let mut png = Vec::new();
        PngEncoder::new(&mut png).write_image(&colour.repeat(64 * 64), 64, 64, ExtendedColorType::Rgb8).unwrap();
        png
    }

    fn count(sheet: &[u8], colour: [u8; 3]) -> usize {
        image::load_from_memory(sheet).unwrap().into_rgb8().pixels().filter(|pixel| pixel.0 == colour).count()
    }

    #[test]
    fn every_model_is_shown_in_a_cell_of_its_own_and_every_failure_as_one() {
        let mut sheet = ContactSheet::new("3 models, 2 failed", 5);
        for _ in 0..3 {
            sheet.add_model("gear.png", &preview([1, 2, 250]));
        }
        sheet.add_failure("notes.txt", "this is not a picture: it looks like text");
        sheet.add_model("broken preview", b"no png");
        let png = sheet.finish().unwrap();
        assert_eq!(count(&png, [1, 2, 250]), 3 * 256 * 256);
        let failed = count(&png, FAILED_PAPER);
        assert!((256 * 256..2 * 256 * 256).contains(&failed), "{failed}");
        assert!(count(&png, FAILED_INK) > 1000);
    }

    #[test]
    fn a_huge_batch_stays_within_the_sheets_bound() {
        let mut sheet = ContactSheet::new("5000 models", 5000);
        let preview = preview([9, 9, 9]);
        for i in 0..CELLS_MAX + 5 {
            sheet.add_model(&format!("{i}.png"), &preview);
        }
        let png = sheet.finish().unwrap();
        assert_eq!(count(&png, [9, 9, 9]), CELLS_MAX * 100 * 100);
    }

    #[test]
    fn an_empty_batch_still_has_a_sheet() {
        let png = ContactSheet::new("0 models", 0).finish().unwrap();
        assert!(image::load_from_memory(&png).is_ok());
    }

    #[test]
    fn texts_fit_their_place() {
        assert_eq!(shortened("holiday-in-rome-0001.jpg", 12), "holid..1.jpg");
        assert_eq!(shortened("short", 12), "short");
        assert_eq!(wrapped("one two three four", 9, 9), ["one two", "three", "four"]);
        assert_eq!(wrapped("one two three four", 9, 2), ["one two", "three.."]);
        assert!(wrapped(&"x".repeat(99), 9, 9).iter().all(|line| line.len() <= 9));
    }
}
