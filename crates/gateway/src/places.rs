//! Places that callers share, for what is held for long: so many in all, and half of them at most for one caller, so that
//! nobody can keep the others out alone. A caller is a user, or before one is known the place that a request comes from.

use std::{hash::Hash, sync::Arc};

use dashmap::{DashMap, Entry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// Part of all the places that one caller may hold, as its divisor.
const CALLERS_PART: usize = 2;

/// The places for one kind of thing. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Places<K: Copy + Eq + Hash = Uuid> {
    all: Arc<Semaphore>,
    each_max: usize,
    /// Callers that hold any, and how many.
    held: Arc<DashMap<K, usize>>,
}

/// A place that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Copy + Eq + Hash = Uuid> {
    caller: K,
    held: Arc<DashMap<K, usize>>,
    _permit: OwnedSemaphorePermit,
}

impl<K: Copy + Eq + Hash> Places<K> {
    pub(crate) fn new(count: u32) -> Self {
        let count = count as usize;
        Self {
            all: Arc::new(Semaphore::new(count)),
            each_max: (count / CALLERS_PART).max(1),
            held: Arc::new(DashMap::new()),
        }
    }

    /// A place for `caller`; `None` when all are taken, or all that one caller may have.
    pub(crate) fn take(&self, caller: K) -> Option<Place<K>> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut held = self.held.entry(caller).or_insert(0);
        if *held >= self.each_max {
            return None;
        }
        *held += 1;
        Some(Place { caller, held: Arc::clone(&self.held), _permit: permit })
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut held) = self.held.entry(self.caller) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_takes_half_of_the_places_and_leaves_the_rest_to_others() {
        let places = Places::new(4);
        let [ada, ben, eve] = [1, 2, 3].map(Uuid::from_u128);
        let hers = [places.take(ada), places.take(ada)];
        assert!(hers.iter().all(Option::is_some) && places.take(ada).is_none());
        let _his = [places.take(ben).expect("there is room"), places.take(ben).expect("there is room")];
        assert!(places.take(eve).is_none(), "all are taken");
        drop(hers);
        assert!(places.take(eve).is_some() && places.take(ada).is_some());
        assert_eq!(places.held.len(), 1, "who holds nothing is forgotten");
    }

    #[test]
    fn a_single_place_can_be_had() {
        let places = Places::new(1);
        let first = places.take(Uuid::nil()).expect("it is free");
        assert!(places.take(Uuid::nil()).is_none());
        drop(first);
        assert!(places.take(Uuid::nil()).is_some());
    }
}
