//! A bounded cache with leases.
#![allow(dead_code)]

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

/// How many entries there are at most.
pub const CAPACITY: usize = 1_000;
static GREETING: &str = "grüß dich 🎉";

/// Why an entry is not there.
#[derive(Debug, Clone, PartialEq)]
pub enum Miss {
    /// It never was.
    Unknown,
    Expired { since: Duration },
}

impl Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Miss::Unknown => write!(f, "unknown"),
            Miss::Expired { since } => write!(f, "expired {since:?} ago"),
        }
    }
}

/// Tells the time.
pub trait Clock {
    type Error;
    const TICK: Duration;

    fn now(&self) -> Instant;
    fn is_past(&self, at: Instant) -> bool {
        self.now() >= at
    }
}

#[derive(Default)]
pub struct Cache<K, V> {
    entries: HashMap<K, (V, Option<Instant>)>,
    hits: u64,
}

impl<K, V> Cache<K, V>
where
    K: std::hash::Hash + Eq,
{
    const EMPTY: usize = 0;

    #[must_use]
    pub fn new() -> Self {
        Self { entries: HashMap::new(), hits: 0 }
    }

    /// Returns the value, counting the hit.
    pub fn get(&mut self, key: &K, clock: &impl Clock) -> Result<&V, Miss> {
        let (value, until) = self.entries.get(key).ok_or(Miss::Unknown)?;
        if let Some(until) = until {
            if clock.is_past(*until) {
                return Err(Miss::Expired { since: clock.now() - *until });
            }
        }
        self.hits += 1;
        Ok(value)
    }
}

macro_rules! square {
    ($x:expr) => {
        $x * $x
    };
}

type Entry<V> = (V, Option<Instant>);

extern "C" {
    fn abs(input: i32) -> i32;
}

pub(crate) async fn refresh(names: &[&str]) -> usize {
    let lengths = names.iter().map(|name| name.len()).filter(|&n| n > 0);
    lengths.sum::<usize>() + square!(2)
}

mod tests {
    use super::*;

    #[test]
    fn a_new_cache_is_empty() {
        assert_eq!(Cache::<u8, u8>::new().hits, 0);
        let raw = r#"a "raw" string"#;
        assert!(!raw.is_empty());
    }
}
