//! The chat templates that agents offer, compiled once for all who offer the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use chat_template::{CompileError, Source};
use router_core::{ChatTemplate, NotRendered};

/// Those in use, by fingerprint. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChatTemplates {
    compiled: Arc<Mutex<HashMap<u64, Weak<Compiled>>>>,
}

/// One of them, as the data plane uses it.
#[derive(Debug)]
struct Compiled(chat_template::ChatTemplate);

impl ChatTemplates {
    /// The template that somebody offers.
    ///
    /// # Errors
    /// It is too large, or cannot be read.
    pub(super) fn compile(&self, source: Source) -> Result<Arc<dyn ChatTemplate>, CompileError> {
        let fingerprint = source.fingerprint();
        let known = |templates: &Self| templates.lock().get(&fingerprint).and_then(Weak::upgrade);
        if let Some(known) = known(self) {
            return Ok(known);
        }
        // Whoever offers the same meanwhile compiles it too: either will do.
        let compiled = Arc::new(Compiled(chat_template::ChatTemplate::compile(source)?));
        let mut table = self.lock();
        table.retain(|_, template| template.strong_count() > 0);
        table.insert(fingerprint, Arc::downgrade(&compiled));
        Ok(compiled)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Weak<Compiled>>> {
        self.compiled.lock().expect("no holder of the table of templates panics")
    }
}

impl ChatTemplate for Compiled {
    fn fingerprint(&self) -> u64 {
        self.0.fingerprint()
    }

    fn render(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.0.render(body).map_err(|error| NotRendered(error.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(source: &str) -> Source {
        let special_tokens = [("bos_token".to_owned(), "<s>".to_owned())].into();
        Source { source: source.to_owned(), special_tokens, leading: String::new() }
    }

    #[test]
    fn equal_offers_share_a_template_for_as_long_as_somebody_has_it() {
        let templates = ChatTemplates::default();
        let first = templates.compile(offered("{{ bos_token }}{{ messages[0].content }}")).unwrap();
        let again = templates.compile(offered("{{ bos_token }}{{ messages[0].content }}")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let body = br#"{"messages":[{"role":"user","content":"a"}]}"#;
        assert_eq!(first.render(body).unwrap(), "<s>a");
        let other = templates.compile(offered("{{ bos_token }}")).unwrap();
        assert_ne!(first.fingerprint(), other.fingerprint());
        assert_eq!(templates.lock().len(), 2);
        drop((first, again));
        templates.compile(offered("{{ eos_token }}")).unwrap();
        assert_eq!(templates.lock().len(), 2, "the one that nobody has is gone");
        assert!(templates.compile(offered("{% if %}")).is_err());
    }
}
