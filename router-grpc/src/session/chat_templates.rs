//! The chat templates that agents offer, compiled once for all who offer the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use chat_template::{CompileError, RenderError, Source};
use router_core::{ChatTemplate, NotRendered};

/// Those in use. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChatTemplates {
    table: Arc<Mutex<Table>>,
}

/// They are known by all that they are made from: no agent can put one in another's place.
#[derive(Debug, Default)]
struct Table {
    compiled: HashMap<Source, Weak<Compiled>>,
    next_id: u64,
}

/// One of them, as the data plane uses it.
#[derive(Debug)]
struct Compiled {
    id: u64,
    template: chat_template::ChatTemplate,
}

impl ChatTemplates {
    /// The template that somebody offers.
    ///
    /// # Errors
    /// It is too large, or cannot be read.
    pub(super) fn compile(&self, source: Source) -> Result<Arc<dyn ChatTemplate>, CompileError> {
        // Held while it is compiled, some milliseconds, so that nobody else compiles the same. A template that breaks the compiler
        // leaves the table as it was.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.compiled.get(&source).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let template = chat_template::ChatTemplate::compile(source.clone())?;
        table.next_id += 1;
        let compiled = Arc::new(Compiled { id: table.next_id, template });
        table.compiled.retain(|_, template| template.strong_count() > 0);
        table.compiled.insert(source, Arc::downgrade(&compiled));
        Ok(compiled)
    }
}

impl ChatTemplate for Compiled {
    fn id(&self) -> u64 {
        self.id
    }

    fn render(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.template.render(body).map_err(not_rendered)
    }

    fn render_messages(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.template.render_messages(body).map_err(not_rendered)
    }

    fn render_responses(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.template.render_responses(body).map_err(not_rendered)
    }

    fn render_ollama(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.template.render_ollama(body).map_err(not_rendered)
    }
}

fn not_rendered(error: RenderError) -> NotRendered {
    NotRendered(error.to_string().into())
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
        let count = || templates.table.lock().unwrap().compiled.len();
        let first = templates.compile(offered("{{ bos_token }}{{ messages[0].content }}")).unwrap();
        let again = templates.compile(offered("{{ bos_token }}{{ messages[0].content }}")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let body = br#"{"messages":[{"role":"user","content":"a"}]}"#;
        assert_eq!(first.render(body).unwrap(), "<s>a");
        let other = templates.compile(offered("{{ bos_token }}")).unwrap();
        assert_ne!(first.id(), other.id());
        assert_eq!(count(), 2);
        drop((first, again));
        templates.compile(offered("{{ eos_token }}")).unwrap();
        assert_eq!(count(), 2, "the one that nobody has is gone");
        assert!(templates.compile(offered("{% if %}")).is_err());
    }
}
