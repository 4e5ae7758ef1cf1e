//! Many filters, asked which of them match a topic: cost by levels, not by filters.

use std::collections::HashMap;

use super::{TopicFilter, TopicName};

/// A set of (filter, value) pairs that is searched by topic name.
#[derive(Debug)]
pub struct FilterTree<V> {
    root: Node<V>,
}

#[derive(Debug)]
struct Node<V> {
    children: HashMap<Box<str>, Node<V>>,
    values: Vec<V>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { children: HashMap::new(), values: Vec::new() }
    }
}

impl<V> Default for FilterTree<V> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<V: PartialEq> FilterTree<V> {
    /// Adds a pair; the same pair twice stands once. Says whether it is the filter's first.
    pub fn insert(&mut self, filter: &TopicFilter, value: V) -> bool {
        let mut node = &mut self.root;
        for level in filter.as_str().split('/') {
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Node::default());
            }
            node = node.children.get_mut(level).expect("invariant: inserted above");
        }
        let first = node.values.is_empty();
        if !node.values.contains(&value) {
            node.values.push(value);
        }
        first
    }

    /// Takes a pair out. Says whether the filter has no pair left (and had this one).
    pub fn remove(&mut self, filter: &TopicFilter, value: &V) -> bool {
        Self::remove_below(&mut self.root, &mut filter.as_str().split('/'), value)
    }

    fn remove_below<'f>(node: &mut Node<V>, levels: &mut impl Iterator<Item = &'f str>, value: &V) -> bool {
        let Some(level) = levels.next() else {
            let before = node.values.len();
            node.values.retain(|v| v != value);
            return before > 0 && node.values.is_empty();
        };
        let Some(child) = node.children.get_mut(level) else { return false };
        let last = Self::remove_below(child, levels, value);
        if child.values.is_empty() && child.children.is_empty() {
            node.children.remove(level);
        }
        last
    }

    /// Calls `found` with the value of every pair whose filter matches `topic`.
    pub fn for_each_match(&self, topic: TopicName<'_>, mut found: impl FnMut(&V)) {
        Self::walk(&self.root, Some(topic.as_str()), true, &mut found);
    }

    fn walk(node: &Node<V>, rest: Option<&str>, first: bool, found: &mut impl FnMut(&V)) {
        let reserved = first && rest.is_some_and(|r| r.starts_with('$'));
        if !reserved && let Some(all) = node.children.get("#") {
            all.values.iter().for_each(&mut *found);
        }
        let Some(rest) = rest else {
            node.values.iter().for_each(found);
            return;
        };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        if let Some(child) = node.children.get(level) {
            Self::walk(child, rest, false, found);
        }
        if !reserved && let Some(child) = node.children.get("+") {
            Self::walk(child, rest, false, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tree_finds_what_each_filter_matches(
            filters in prop::collection::vec(prop::collection::vec(prop::sample::select(vec!["a", "b", "+", "", "$s", "#"]), 1..4), 0..12),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            topic in prop::collection::vec(prop::sample::select(vec!["a", "b", "", "$s"]), 1..5),
        ) {
            let mut filters: Vec<TopicFilter> = filters.iter().filter_map(|l| TopicFilter::try_from(&*l.join("/")).ok()).collect();
            filters.sort();
            filters.dedup();
            let mut tree = FilterTree::default();
            for (i, f) in filters.iter().enumerate() {
                prop_assert!(tree.insert(f, i));
            }
            let mut gone = vec![];
            for r in removed {
                if !filters.is_empty() {
                    let i = r.index(filters.len());
                    prop_assert_eq!(tree.remove(&filters[i], &i), !gone.contains(&i));
                    gone.push(i);
                }
            }
            let topic = topic.join("/");
            prop_assume!(!topic.is_empty());
            let topic = TopicName::new(topic.as_bytes()).expect("a name");
            let mut found = vec![];
            tree.for_each_match(topic, |i| found.push(*i));
            found.sort_unstable();
            let want: Vec<usize> = (0..filters.len()).filter(|i| !gone.contains(i) && filters[*i].matches(topic)).collect();
            prop_assert_eq!(found, want);
        }
    }
}
