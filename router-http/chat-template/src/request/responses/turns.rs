//! The messages of all items: one for each turn of the assistant's, and those of the system where the template takes them.

use crate::RenderError;
use crate::request::message::{Content, Message, texts};
use crate::system_place::SystemPlace;

/// Between what were contents of two messages.
const BETWEEN: &str = "\n\n";

/// With the messages of one turn of the assistant's as one.
pub(super) fn merged(messages: Vec<Message>) -> Vec<Message> {
    let mut merged: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        match merged.last_mut() {
            Some(last) if goes_on(last, &message) => take(last, message),
            _ => merged.push(message),
        }
    }
    merged
}

fn goes_on(last: &Message, next: &Message) -> bool {
    let assistants = last.role == "assistant" && next.role == "assistant";
    assistants && (last.phase == next.phase || is_thought(last))
}

/// It has reasoning and nothing else.
pub(super) fn is_thought(message: &Message) -> bool {
    message.reasoning_content.is_some()
        && message.content.is_none()
        && message.tool_calls.is_none()
        && says_nothing_else(message)
}

fn says_nothing_else(message: &Message) -> bool {
    message.tool_call_id.is_none()
        && message.name.is_none()
        && message.phase.is_none()
        && message.tools.is_none()
        && message.prefix.is_none()
}

/// Adds what another message says. Whatever else it has is lost.
fn take(last: &mut Message, other: Message) {
    last.phase = other.phase.or(last.phase.take());
    last.content = joined(last.content.take(), other.content);
    if let Some(calls) = other.tool_calls.filter(|calls| !calls.is_empty()) {
        last.tool_calls.get_or_insert_default().extend(calls);
    }
    if let Some(reasoning) = other.reasoning_content.filter(|text| !text.is_empty()) {
        match &mut last.reasoning_content {
            Some(before) if !before.is_empty() => before.extend(["\n", &reasoning]),
            before => *before = Some(reasoning),
        }
    }
}

fn joined(before: Option<Content>, added: Option<Content>) -> Option<Content> {
    let is_nothing = |content: &Content| matches!(content, Content::Text(text) if text.is_empty());
    let Some(added) = added.filter(|added| !is_nothing(added)) else { return before };
    Some(match (before.filter(|before| !is_nothing(before)), added) {
        (None, added) => added,
        // In place: a turn may have as many items as a body can hold.
        (Some(Content::Text(mut before)), Content::Text(added)) => {
            before.extend([BETWEEN, &added]);
            Content::Text(before)
        }
        (Some(before), added) => {
            let mut parts = before.into_parts();
            parts.extend(added.into_parts());
            Content::Parts(parts)
        }
    })
}

/// With the messages of the system where they belong.
pub(super) fn placed(messages: Vec<Message>, place: SystemPlace) -> Result<Vec<Message>, RenderError> {
    match place {
        SystemPlace::Own => return Ok(messages),
        SystemPlace::Unknown if !is_placed(&messages) => return Err(RenderError::Systems),
        SystemPlace::First | SystemPlace::Unknown => {}
    }
    let (systems, others): (Vec<Message>, Vec<Message>) = messages.into_iter().partition(is_systems);
    let mut said: Vec<String> = Vec::new();
    for system in systems {
        match system.content {
            Some(Content::Text(text)) => said.push(text),
            Some(Content::Parts(parts)) => said.extend(texts(&parts)?.into_iter().map(str::to_owned)),
            None => {}
        }
    }
    let first = (!said.is_empty()).then(|| Message::of("system", Some(Content::Text(said.join(BETWEEN)))));
    Ok(first.into_iter().chain(others).collect())
}

fn is_systems(message: &Message) -> bool {
    message.role == "system"
}

/// Whether it comes to the same if the messages of the system stay where they are and if they are put first.
fn is_placed(messages: &[Message]) -> bool {
    let plain = |first: &Message| {
        matches!(first.content, Some(Content::Text(_)))
            && first.tool_calls.is_none()
            && first.reasoning_content.is_none()
            && says_nothing_else(first)
    };
    let first = messages.first().is_none_or(|first| !is_systems(first) || plain(first));
    first && messages.iter().skip(1).all(|message| !is_systems(message))
}
