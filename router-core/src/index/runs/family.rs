//! How runs hang together: parents, children and siblings.

use super::{Links, NONE, Runs};

impl Runs {
    pub(in crate::index) fn parent(&self, run: u32) -> Option<u32> {
        self.links.get(run as usize).map(|links| links.parent).filter(|parent| *parent != NONE)
    }

    pub(in crate::index) fn children(&self, run: u32) -> impl Iterator<Item = u32> + '_ {
        let some = |run: u32| (run != NONE).then_some(run);
        let first = some(self.links[run as usize].first_child);
        std::iter::successors(first, move |run| some(self.links[*run as usize].next))
    }

    /// Hangs a run below another.
    pub(super) fn hang(&mut self, run: u32, parent: u32) {
        let next = std::mem::replace(&mut self.links[parent as usize].first_child, run);
        if next != NONE {
            self.links[next as usize].previous = run;
        }
        let links = &mut self.links[run as usize];
        (links.parent, links.next) = (parent, next);
    }

    /// Lets a run's neighbours and parent know another in its place: one that takes it over, or its own next one.
    pub(super) fn replace_in_family(&mut self, run: u32, by: u32) {
        let Links { parent, next, previous, .. } = self.links[run as usize];
        if previous != NONE {
            self.links[previous as usize].next = by;
        } else if parent != NONE {
            self.links[parent as usize].first_child = by;
        }
        if next == NONE {
            return;
        }
        self.links[next as usize].previous = if by == next { previous } else { by };
    }
}
