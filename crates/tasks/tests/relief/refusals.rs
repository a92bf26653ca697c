//! What is refused, when, and with which words.

use image::ExtendedColorType;
use tasks::providers::relief::{self, Fault, Params};

use super::pictures::{self, HEIGHT, TileJpeg, WIDTH, quadrant, quadrants};
use super::{coarse, fixture, make};

#[track_caller]
fn refusal(picture: &[u8]) -> Fault {
    let fault = make(picture, &coarse()).expect_err("it was taken");
    assert_eq!(fault.kind(), "invalid_input");
    fault
}

#[test]
fn an_empty_file() {
    let fault = refusal(b"");
    assert!(matches!(fault, Fault::Empty));
    assert_eq!(fault.to_string(), "the file is empty (0 bytes)");
}

#[test]
fn what_is_no_picture_says_what_it_looks_like() {
    let no_pictures: [(&[u8], &str); 5] = [
        (b"shopping: milk, bread\n", "it looks like text"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "it looks like text"),
        ("gr\u{fc}\u{df}e".as_bytes(), "it looks like text"),
        (b"%PDF-1.7\n", "it is a PDF document"),
        (&[0, 1, 2, 3, 250, 251], "its first bytes belong to no known format"),
    ];
    for (bytes, words) in no_pictures {
        let fault = refusal(bytes);
        assert!(matches!(fault, Fault::NotAPicture(_)), "{fault}");
        assert!(fault.to_string().contains(words), "{fault}");
    }
}

#[test]
fn pictures_of_other_kinds_are_called_by_their_name() {
    let others: [(&[u8], &str); 3] =
        [(b"II*\0\x08\0\0\0", "TIFF"), (b"\0\0\0\x18ftypheic", "HEIC"), (b"\0\0\0\x18ftypavif", "AVIF")];
    for (bytes, name) in others {
        let fault = refusal(bytes);
        assert!(matches!(fault, Fault::Unsupported(_)), "{fault}");
        assert!(fault.to_string().contains(name), "{fault}");
    }
}

#[test]
fn a_picture_cut_off_anywhere_never_becomes_half_a_relief() {
    let rgb: Vec<u8> = quadrants().iter().flat_map(|&grey| [grey; 3]).collect();
    let whole = [
        ("PNG", pictures::png(&rgb, WIDTH, HEIGHT, ExtendedColorType::Rgb8)),
        ("interlaced PNG", pictures::interlaced_png(&quadrants())),
        ("JPEG", TileJpeg::GREY.encode(WIDTH, HEIGHT, |x, y| [quadrant(x, y); 4])),
        ("progressive JPEG", fixture("progressive-420.jpg")),
        ("WebP", fixture("lossy.webp")),
    ];
    for (what, bytes) in whole {
        assert!(make(&bytes, &coarse()).is_ok(), "{what}");
        let cuts = (16..bytes.len()).step_by(bytes.len() / 40 + 1).chain([bytes.len() - 1]);
        for cut in cuts {
            let fault = refusal(&bytes[..cut]);
            assert!(matches!(fault, Fault::Truncated(_)), "{what} cut to {cut} bytes: {fault}");
        }
    }
}

#[test]
fn damage_inside_a_png_is_found() {
    let mut png = pictures::png(&quadrants(), WIDTH, HEIGHT, ExtendedColorType::L8);
    let middle = png.len() / 2;
    png[middle] ^= 0x55;
    assert!(matches!(refusal(&png), Fault::Truncated(_)));
}

#[test]
fn sizes_are_judged_from_the_header() {
    use png::{BitDepth, ColorType};
    // Nothing but headers: were any of them decoded, the answer would be another one.
    let png = |width, height, color_type, bit_depth, interlaced| {
        let mut info = png::Info::with_size(width, height);
        (info.color_type, info.bit_depth, info.interlaced) = (color_type, bit_depth, interlaced);
        pictures::raw_png(info, &pictures::stored(&[0; 100]))
    };
    let mut jpeg = TileJpeg { components: 3, ..TileJpeg::GREY }.encode(16, 16, |_, _| [128; 4]);
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x27, 0x10, 0x26, 0xac]);
    let mut progressive = jpeg.clone();
    progressive[frame + 1] = 0xc2;
    progressive[frame + 5..frame + 9].copy_from_slice(&[0x1f, 0x40, 0x1f, 0x40]);

    let cases = [
        (png(30_000, 30_000, ColorType::Rgb, BitDepth::Eight, false), "30000 x 30000 pixels, 900.0 megapixels"),
        (png(100_000, 100, ColorType::Grayscale, BitDepth::Eight, false), "100000 x 100 pixels"),
        (png(9_000, 9_000, ColorType::Rgba, BitDepth::Sixteen, true), "9000 x 9000 pixels, 618 MiB once decoded"),
        (jpeg, "9900 x 10000 pixels, 284 MiB once decoded"),
        (progressive, "8000 x 8000 pixels, 550 MiB while decoding"),
    ];
    for (picture, words) in cases {
        let fault = refusal(&picture);
        assert!(matches!(fault, Fault::TooLarge { .. }), "{fault}");
        assert!(fault.to_string().contains(words), "{fault}");
    }
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let wrong = [
        ("size_mm", Params { size_mm: 5.0, ..coarse() }),
        ("depth_mm", Params { depth_mm: f64::NAN, ..coarse() }),
        ("base_mm", Params { base_mm: 0.0, ..coarse() }),
        ("samples", Params { samples: 100_000, ..coarse() }),
        ("smoothing", Params { smoothing: -1.0, ..coarse() }),
    ];
    let png = pictures::png(&quadrants(), WIDTH, HEIGHT, ExtendedColorType::L8);
    for (name, params) in wrong {
        let fault = make(&png, &params).unwrap_err();
        assert!(matches!(&fault, Fault::Parameter(words) if words.starts_with(name)), "{fault}");
    }
    assert!(serde_json::from_str::<Params>(r#"{"sizes_mm": 50}"#).is_err());
    assert_eq!(serde_json::from_str::<Params>("{}").unwrap(), Params::default());
}

#[test]
fn the_schema_states_defaults_and_ranges() {
    let schema = serde_json::to_value(schemars::schema_for!(Params)).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    let ranges = [
        ("size_mm", 10.0, 1000.0, 100.0),
        ("depth_mm", 0.5, 100.0, 8.0),
        ("base_mm", 0.5, 50.0, 2.0),
        ("samples", 16.0, 1024.0, 256.0),
        ("smoothing", 0.0, 10.0, 1.0),
    ];
    for (name, min, max, default) in ranges {
        let property = &schema["properties"][name];
        let found = ["minimum", "maximum", "default"].map(|key| property[key].as_f64().unwrap());
        assert_eq!(found, [min, max, default], "{name}");
    }
    assert_eq!(schema["properties"]["invert"]["default"], false);
}

#[test]
fn a_file_that_is_not_there_is_our_fault_and_not_the_senders() {
    let fault = relief::make("/no/such/file".as_ref(), &coarse(), &mut |_, _| {}).unwrap_err();
    assert!(matches!(fault, Fault::Io(_)));
    assert_eq!(fault.kind(), "internal");
}
