//! Patterns of event types, as RabbitMQ's topic exchanges have them: words between dots, `*` for one word, `#` for any
//! number of words, none among them.

/// Whether the type `kind` fits `pattern`.
pub fn matches(pattern: &str, kind: &str) -> bool {
    fn fits(pattern: &[&str], words: &[&str]) -> bool {
        match (pattern.split_first(), words.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => (0..=words.len()).any(|skipped| fits(rest, &words[skipped..])),
            (Some((&"*", pattern)), Some((_, words))) => fits(pattern, words),
            (Some((word, pattern)), Some((first, words))) => word == first && fits(pattern, words),
            _ => false,
        }
    }
    let (pattern, words): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), kind.split('.').collect());
    fits(&pattern, &words)
}

/// The same pattern as a regular expression for Postgres. None for what is no pattern: letters, digits, `_`, `-`, dots
/// and the two signs alone.
pub fn sql_pattern(pattern: &str) -> Option<String> {
    let is_plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    // A dot stands before every word: `.auth.act.recorded` is what the expression is held against.
    let mut expression = String::from("^");
    for word in pattern.split('.') {
        match word {
            "#" => expression.push_str("(\\.[^.]+)*"),
            "*" => expression.push_str("\\.[^.]+"),
            word if !word.is_empty() && is_plain(word) => {
                expression.push_str("\\.");
                expression.push_str(word);
            }
            _ => return None,
        }
    }
    expression.push('$');
    Some(expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_a_topic_exchange() {
        for (pattern, kind, fits) in [
            ("auth.user.registered", "auth.user.registered", true),
            ("auth.user.registered", "auth.user.disabled", false),
            ("*.act.recorded", "jobs.act.recorded", true),
            ("*.act.recorded", "a.b.act.recorded", false),
            ("jobs.*", "jobs.job.submitted", false),
            ("jobs.#", "jobs.job.submitted", true),
            ("jobs.#", "jobs", true),
            ("#", "anything.at.all", true),
            ("#.recorded", "jobs.act.recorded", true),
            ("#.act.#.recorded", "jobs.act.recorded", true),
            ("jobs", "jobs.job", false),
        ] {
            assert_eq!(matches(pattern, kind), fits, "{pattern} {kind}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_not_handed_to_the_database() {
        assert_eq!(sql_pattern("*.act.recorded").as_deref(), Some("^\\.[^.]+\\.act\\.recorded$"));
        assert_eq!(sql_pattern("jobs.#").as_deref(), Some("^\\.jobs(\\.[^.]+)*$"));
        for bad in ["", "a..b", "(.*)+", "jobs.jo'b", "jobs.**"] {
            assert_eq!(sql_pattern(bad), None, "{bad}");
        }
    }
}
