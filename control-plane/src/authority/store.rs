//! Where an authority is kept. One semantics, two places: files, and objects of a cluster.
//!
//! A store holds the authority that shall sign, and publishes whom to trust: the bundle, and of it apart the roots of earlier
//! authorities. Those stay until somebody takes them out of there (or they expire). A store judges nothing: `material` does.

mod directory;
mod secret;
mod settled;

use std::time::Duration;

pub(crate) use self::directory::Directory;
pub(crate) use self::secret::InCluster;
use super::AuthorityError;
use super::material::Material;

/// Of making an authority where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Created {
    Made,
    /// Somebody was faster: theirs counts.
    AlreadyThere,
}

#[tonic::async_trait]
pub(super) trait Store: Send + Sync + 'static {
    /// For log and status.
    fn name(&self) -> String;
    /// How often to look at it.
    fn look_every(&self) -> Duration;
    /// None: there is no authority yet.
    async fn read(&self) -> Result<Option<Material>, AuthorityError>;
    async fn create(&self, material: &Material) -> Result<Created, AuthorityError>;
    /// Says in the log what is unwise about it, once.
    fn warn(&self) {}
    /// The roots of earlier authorities.
    async fn previous(&self) -> Result<Vec<Vec<u8>>, AuthorityError>;
    /// Writes only what differs.
    async fn publish(&self, bundle: &[Vec<u8>], previous: &[Vec<u8>]) -> Result<(), AuthorityError>;
}
