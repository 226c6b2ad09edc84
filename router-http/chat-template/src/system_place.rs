//! Where messages of the system go that do not come first. SGLang finds out from the template by rendering one, for
//! `/v1/responses`; where the template does not show it, all that the system says is put first.

use minijinja::Value;

use crate::environment;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SystemPlace {
    /// They stay where they are.
    Own,
    /// All are one message, which comes first.
    First,
    /// SGLang's Jinja may find it out or fail, and which is not known here.
    Unknown,
}

/// What the message says that is looked for.
const LATER: &str = "said later by the system";

impl SystemPlace {
    pub(crate) fn of(source: &str) -> Self {
        // Marks that only the library knows, which is not used for this.
        if environment::without_generation_marks(source) != source {
            return Self::First;
        }
        let environment = environment::of_jinja();
        let message = |(role, content): (&str, &str)| {
            Value::from_pairs([("role", Value::from(role)), ("content", Value::from(content))])
        };
        let messages = [("system", "t"), ("user", "t"), ("system", LATER), ("user", "t")].map(message);
        let variables = Value::from_pairs([
            ("messages", Value::from(messages.to_vec())),
            ("add_generation_prompt", Value::from(false)),
        ]);
        let rendered = environment.template_from_str(source).and_then(|template| template.render(variables));
        match rendered {
            Ok(text) if text.contains(LATER) => Self::Own,
            Ok(_) => Self::First,
            // So the template refuses the chat, asks for the time, or puts something to a special token.
            Err(error) if environment::fails_in_jinja(&error) => Self::First,
            Err(_) => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// As SGLang's own `detect_inline_system_support` finds of the fixtures' templates.
    #[test]
    fn it_finds_what_the_engine_finds() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let read = |name: &str| std::fs::read_to_string(fixtures.join(name)).unwrap();
        let captured: serde_json::Value = serde_json::from_str(&read("other_apis.json")).unwrap();
        let found = captured["later_system_in_place"].as_object().unwrap();
        assert!(found.len() > 5);
        for (name, in_place) in found {
            let place = if in_place == true { SystemPlace::Own } else { SystemPlace::First };
            assert_eq!(SystemPlace::of(&read(&format!("{name}.jinja"))), place, "{name}");
        }
    }

    #[test]
    fn a_template_shows_whether_it_takes_later_messages_of_the_system() {
        let each = "{% for message in messages %}{{ message.role }}{{ message.content }}{% endfor %}";
        let refusing = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
                        {{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}";
        let passing = "{{ messages[0].content }}{% for m in messages %}\
                       {% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}";
        let marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
        let dated = format!("{{{{ strftime_now('%Y') }}}}{each}");
        let dated_if_it_can =
            format!("{{% if strftime_now is defined %}}{{{{ strftime_now('%Y') }}}}{{% endif %}}{each}");
        let first_token = format!("{{{{ bos_token }}}}{{{{ tools }}}}{each}");
        // They differ in what is undefined, above all.
        let undefined = "{% if tools is defined %}{{ tools[0] }}{% endif %}{{ x | default('') }}";
        let undefined = format!(
            "{undefined}{{% if 'a' in tools %}}{{% endif %}}{{{{ messages[0].get('n', 'n') }}}}{each}"
        );
        let nothing_of_undefined = format!("{{{{ tools.first }}}}{each}");
        for (source, place) in [
            (&*undefined, SystemPlace::Own),
            (&*nothing_of_undefined, SystemPlace::Unknown),
            (each, SystemPlace::Own),
            (&*first_token, SystemPlace::Own),
            (&*dated_if_it_can, SystemPlace::Own),
            (refusing, SystemPlace::First),
            (passing, SystemPlace::First),
            (marked, SystemPlace::First),
            (&*dated, SystemPlace::First),
            ("{% for m in messages %}{{ m | tojson(indent=2) }}{% endfor %}", SystemPlace::Own),
            ("{% for m in messages %}{{ m | tojson(ensure_ascii=false) }}{% endfor %}", SystemPlace::First),
            ("{{ tools | tojson }}{{ messages | tojson }}", SystemPlace::First),
            ("{{ bos_token + messages[2].content }}", SystemPlace::First),
            ("{{ messages[2].content ~ bos_token }}", SystemPlace::Own),
        ] {
            assert_eq!(SystemPlace::of(source), place, "{source}");
        }
    }
}
