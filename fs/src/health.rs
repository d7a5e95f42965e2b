//! How a mount stands with its catalogue, for whoever asks: the root directory answers it as an
//! attribute. It knows neither the feed's events nor the kernel's requests.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::tree::Position;

/// The root directory's attribute that holds a [`FeedHealth`] as one line of JSON.
pub const FEED_ATTRIBUTE: &str = "user.isotope.feed";

/// Whether the mount hears the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contact {
    Following,
    /// It answers, and has yet to tell what was missed.
    CatchingUp,
    Lost,
}

/// What a mount says of its feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedHealth {
    /// URL of the catalogue.
    pub catalog: String,
    pub contact: Contact,
    /// For so long it has been so.
    pub seconds: u64,
    /// Why the feed was lost; for people.
    pub because: Option<String>,
    /// Shown from what an earlier mount recorded: nothing can be changed until the catalogue has
    /// been followed.
    pub from_snapshot: bool,
    pub incarnation: String,
    /// What is shown is the library at this revision.
    pub revision: u64,
    /// Why nothing is recorded for the next start; none if it is.
    pub unrecorded: Option<String>,
}

#[derive(Debug, Clone)]
struct State {
    contact: Contact,
    since: Instant,
    because: Option<String>,
    /// Since this mount began.
    ever_followed: bool,
    unrecorded: Option<String>,
}

/// Shared by the follower, who tells, and by those who ask.
pub(crate) struct Health {
    catalog: String,
    state: watch::Sender<State>,
}

impl Health {
    /// Nothing has been heard yet.
    pub(crate) fn new(catalog: String, now: Instant) -> Self {
        let state = State {
            contact: Contact::Lost,
            since: now,
            because: None,
            ever_followed: false,
            unrecorded: None,
        };
        Self { catalog, state: watch::Sender::new(state) }
    }

    pub(crate) fn contact(&self) -> Contact {
        self.state.borrow().contact
    }

    /// False: all that is shown comes from a snapshot.
    pub(crate) fn ever_followed(&self) -> bool {
        self.state.borrow().ever_followed
    }

    /// The contact is another from now on; `because` says why it was lost.
    pub(crate) fn set(&self, contact: Contact, because: Option<String>, now: Instant) {
        self.state.send_modify(|state| {
            if state.contact != contact {
                state.contact = contact;
                state.since = now;
            }
            state.because = because;
            state.ever_followed |= contact == Contact::Following;
        });
    }

    /// Whether what is heard is recorded; where not, why.
    pub(crate) fn set_unrecorded(&self, because: Option<String>) {
        self.state.send_if_modified(|state| {
            let differs = state.unrecorded != because;
            state.unrecorded = because;
            differs
        });
    }

    /// Returns once the contact is one of these.
    pub(crate) async fn until(&self, any_of: &[Contact]) {
        let mut state = self.state.subscribe();
        // The sender lives as long as self.
        let _ = state.wait_for(|state| any_of.contains(&state.contact)).await;
    }

    /// Returns once it is known why the catalogue cannot be followed.
    pub(crate) async fn until_refused(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as self.
        let _ = state.wait_for(|state| state.because.is_some()).await;
    }

    pub(crate) fn told(&self, position: Position, now: Instant) -> FeedHealth {
        let state = self.state.borrow();
        FeedHealth {
            catalog: self.catalog.clone(),
            contact: state.contact,
            seconds: now.saturating_duration_since(state.since).as_secs(),
            because: state.because.clone(),
            from_snapshot: !state.ever_followed,
            incarnation: position.incarnation.to_string(),
            revision: position.revision.0,
            unrecorded: state.unrecorded.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isotope_proto::id::{Incarnation, Revision};

    use super::*;

    #[test]
    fn what_is_told_is_what_was_heard() {
        let began = Instant::now();
        let health = Health::new("http://c".to_owned(), began);
        let incarnation = Incarnation::from_bytes([1; 16]);
        let position = Position { incarnation, revision: Revision(7) };
        assert!(health.told(position, began).from_snapshot);
        health.set(Contact::Following, None, began);
        let lost = began + Duration::from_secs(5);
        health.set(Contact::Lost, Some("no word".to_owned()), lost);
        // Said again, it is lost since the first time.
        health.set(Contact::Lost, Some("refused".to_owned()), lost + Duration::from_secs(1));
        let told = health.told(position, lost + Duration::from_secs(3));
        assert_eq!((told.contact, told.seconds, told.revision), (Contact::Lost, 3, 7));
        assert_eq!(told.because.as_deref(), Some("refused"));
        assert!(!told.from_snapshot, "it has followed once");
        let json = serde_json::to_string(&told).expect("JSON");
        assert!(json.contains(r#""contact":"lost""#), "{json}");
        assert_eq!(serde_json::from_str::<FeedHealth>(&json).expect("read back"), told);
    }
}
