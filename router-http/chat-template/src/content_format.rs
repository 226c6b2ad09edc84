//! What a template takes for a message's content: text, or a list of parts. SGLang finds it out from the template, and gives every
//! message in that form.

/// The form of a content that came in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentFormat {
    /// The texts of its parts, joined by spaces.
    Text,
    /// The parts.
    Parts,
}

/// Words by which SGLang takes a template for one of several modalities.
const MEDIA: [&str; 4] = ["image", "audio", "video", "vision"];

/// Variables whose content is looked for in loops.
const MESSAGES: [&str; 3] = ["message", "msg", "m"];

impl ContentFormat {
    /// Of parts, if the template speaks of media, or has a loop over a message's content.
    pub(crate) fn of(template: &str) -> Self {
        let mut statements = template.split("{%").skip(1).filter_map(|rest| Some(rest.split_once("%}")?.0));
        let parts = MEDIA.iter().any(|word| template.contains(word)) || statements.any(loops_over_content);
        if parts { Self::Parts } else { Self::Text }
    }
}

/// Whether a statement is a loop over `message.content` or `message['content']`, whole, in part (`[1:]`), or through filters.
fn loops_over_content(statement: &str) -> bool {
    let statement = statement.trim_start_matches(['-', '+']).trim_start();
    let Some(head) = statement.strip_prefix("for").filter(|head| head.starts_with(char::is_whitespace))
    else {
        return false;
    };
    let Some((_, iterated)) = head.split_once(" in ") else { return false };
    let iterated = iterated.trim_start().trim_start_matches('(').trim_start();
    let name = iterated.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(iterated.len());
    let (name, rest) = iterated.split_at(name);
    MESSAGES.contains(&name) && content(rest.trim_start()).is_some_and(is_whole)
}

/// What follows an access to the content.
fn content(rest: &str) -> Option<&str> {
    if let Some(rest) = rest.strip_prefix('.') {
        let rest = rest.trim_start().strip_prefix("content")?;
        return (!rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')).then_some(rest);
    }
    let rest = rest.strip_prefix('[')?.trim_start();
    let rest = ["'content'", "\"content\""].iter().find_map(|key| rest.strip_prefix(key))?;
    rest.trim_start().strip_prefix(']')
}

/// Whether the content is iterated over as such, and not something that is called on it or taken from it.
fn is_whole(rest: &str) -> bool {
    let rest = rest.trim_start();
    if let Some(index) = rest.strip_prefix('[') {
        return index.split_once(']').is_some_and(|(index, _)| index.contains(':'));
    }
    !rest.starts_with(['.', '('])
}

#[cfg(test)]
mod tests {
    use super::*;

    // Checked against SGLang's own `detect_jinja_template_content_format`.
    #[test]
    fn loops_over_a_content_ask_for_parts() {
        for template in [
            "{% for part in message['content'] %}{% endfor %}",
            "{%- for part in message.content -%}{%- endfor -%}",
            "{%- for part in msg[\"content\"] | list if part.text %}{% endfor %}",
            "{%- for part in m.content[1:] %}{% endfor %}",
            "a picture's vision",
        ] {
            assert_eq!(ContentFormat::of(template), ContentFormat::Parts, "{template}");
        }
        for template in [
            "{% for message in messages %}{{ message.content }}{% endfor %}",
            "{% for line in message.content.split('\\n') %}{% endfor %}",
            "{% for part in item.content %}{% endfor %}",
            "{% for c in message.content[0] %}{% endfor %}",
            "{% for c in message.contents %}{% endfor %}",
            "{{ 'for x in message.content' }}",
        ] {
            assert_eq!(ContentFormat::of(template), ContentFormat::Text, "{template}");
        }
    }
}
