//! Who is next: a queue in which no tenant's many delay another's few.
//!
//! What waits is kept apart by whom it is for, and taken in turns. Within one tenant the order is kept. Pure.

use std::collections::{HashMap, VecDeque};

/// A queue of `T`, in turns between keys.
#[derive(Debug)]
pub struct FairQueue<T> {
    waiting: HashMap<String, VecDeque<T>>,
    /// Keys of which something waits, the next one first.
    turns: VecDeque<String>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
        }
    }
}

impl<T> FairQueue<T> {
    /// Adds behind what waits for the same key.
    pub fn push(&mut self, key: String, item: T) {
        let of_key = self.waiting.entry(key.clone()).or_default();
        if of_key.is_empty() {
            self.turns.push_back(key);
        }
        of_key.push_back(item);
    }

    /// What is next.
    #[must_use]
    pub fn peek(&self) -> Option<&T> {
        self.waiting.get(self.turns.front()?)?.front()
    }

    /// Takes what is next; its key goes behind all others.
    pub fn pop(&mut self) -> Option<T> {
        let key = self.turns.pop_front()?;
        let of_key = self.waiting.get_mut(&key)?;
        let item = of_key.pop_front();
        if of_key.is_empty() {
            self.waiting.remove(&key);
        } else {
            self.turns.push_back(key);
        }
        item
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_pass_many_and_each_keeps_its_order() {
        let mut queue = FairQueue::default();
        for number in 0..100 {
            queue.push("loud".to_owned(), number);
        }
        queue.push("quiet".to_owned(), 1000);
        queue.push("quiet".to_owned(), 1001);
        queue.push("other".to_owned(), 2000);
        assert_eq!(queue.peek(), Some(&0));
        let first: Vec<_> = (0..6).filter_map(|_| queue.pop()).collect();
        assert_eq!(first, [0, 1000, 2000, 1, 1001, 2]);
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert!(rest.is_sorted() && rest.len() == 97);
        assert!(queue.is_empty() && queue.peek().is_none());
    }
}
