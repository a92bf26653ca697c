//! The picture as the model's texture: JPEG, 8-bit sRGB, without profile or other metadata.
//!
//! JPEG also for pictures with transparency, whose transparent places already carry the plate's colour: the body they
//! are laid on is solid.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::Fault;
use super::picture::Picture;

/// High enough that lettering and palette pictures keep clean edges.
const QUALITY: u8 = 90;

/// # Errors
/// [`Fault::Io`] should the encoder fail, which memory alone can make it do.
pub(super) fn encode(picture: &Picture) -> Result<Vec<u8>, Fault> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&picture.rgb, picture.width as u32, picture.height as u32, ExtendedColorType::Rgb8)
        .map_err(|error| Fault::Io(std::io::Error::other(error)))?;
    Ok(jpeg)
}
