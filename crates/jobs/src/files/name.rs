//! The names that files are shown under. They come from strangers' machines, and end in archives, headers and terminals.

/// Longest name, in bytes of UTF-8: what common file systems take.
const NAME_BYTES_MAX: usize = 255;

/// An ending up to this long, its dot included, is kept when a name is cut.
const ENDING_BYTES_MAX: usize = 16;

/// A name that is safe to show and to store: the last part of a path, without control characters and without those that
/// turn the direction of writing (which make `gpj.exe` look like `exe.jpg`), at most 255 bytes; `file` when nothing is left.
pub(super) fn sanitised(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = last.chars().filter(|&c| !c.is_control() && !turns_writing(c)).collect();
    match clean.trim() {
        "" | "." | ".." => "file".to_owned(),
        name => shortened(name),
    }
}

fn turns_writing(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn shortened(name: &str) -> String {
    if name.len() <= NAME_BYTES_MAX {
        return name.to_owned();
    }
    let ending = match name.rfind('.') {
        Some(dot) if name.len() - dot <= ENDING_BYTES_MAX => &name[dot..],
        _ => "",
    };
    let stem = &name[..name.floor_char_boundary(NAME_BYTES_MAX - ending.len())];
    format!("{}{ending}", stem.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_leaves_its_last_part_and_nothing_leaves_a_name() {
        for (given, shown) in [
            ("photo.jpg", "photo.jpg"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\me\\photo 1.png", "photo 1.png"),
            ("a\0b\r\n\u{7f}.txt", "ab.txt"),
            ("\u{202e}gpj.exe", "gpj.exe"),
            ("  übung.png ", "übung.png"),
            ("folder/", "file"),
            ("..", "file"),
            ("\n", "file"),
            ("", "file"),
        ] {
            assert_eq!(sanitised(given), shown, "{given:?}");
        }
    }

    #[test]
    fn a_long_name_keeps_its_ending() {
        let name = sanitised(&format!("{}.jpeg", "ä".repeat(300)));
        assert!(name.len() <= NAME_BYTES_MAX && name.ends_with("ä.jpeg"), "{name}");
        assert_eq!(sanitised(&format!("a.{}", "b".repeat(400))).len(), NAME_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_name_becomes_a_safe_one_and_stays_it(given in "\\PC*|[\\x00-\\x40./\\\\ ä\u{202e}]{0,300}") {
            let name = sanitised(&given);
            prop_assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX);
            prop_assert!(!name.contains(['/', '\\']) && !name.chars().any(char::is_control));
            prop_assert_eq!(sanitised(&name), name);
        }
    }
}
