//! What a provider says changed, checked while it is listened to.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::base::DiskBase;
use super::run::Run;
use super::snapshot::{OpenDisk, Taken, is_a_lie};
use crate::error_chain::Chain;
use crate::machine::Extent;
use crate::nbd::NbdSource;
use crate::provider::{ChangeList, Changes, ProviderError, ProviderErrorKind};

/// What the contract lets a provider say at a time.
const EXTENTS_AT_A_TIME: usize = 65_536;

/// What was wrong with a list, if anything; read when the transfer is over.
pub(super) type Caught = Arc<Mutex<Option<String>>>;

/// Asks the provider what changed on one disk. An answer that is not one is no failure: everything is read then.
pub(super) async fn ask(
    run: &Run<'_>,
    taken: &Taken,
    disk: &OpenDisk,
    base: Option<&DiskBase>,
    caught: &Caught,
) -> Result<Box<dyn ChangeList>, String> {
    let Some(base) = base else {
        return Err("there is no earlier point of it".to_owned());
    };
    let token = base.token.as_ref().map_err(Clone::clone)?;
    let checked = |list| -> Box<dyn ChangeList> {
        Box::new(Checked {
            list,
            size_bytes: disk.source.size_bytes(),
            known_bytes: disk.source.size_bytes().max(base.disk.size_bytes),
            end_bytes: 0,
            caught: caught.clone(),
        })
    };
    match run
        .deps
        .provider
        .changed(&run.machine, &taken.id, &disk.info.id, token)
        .await
    {
        Ok(Changes::Listed(list)) => Ok(checked(list)),
        Ok(Changes::InNbdContext) => {
            let said = disk.nbd.as_ref().and_then(NbdSource::changes);
            said.map(checked).ok_or_else(|| {
                let what = "an NBD context of changes, and named none with the snapshot";
                *caught.lock() = Some(what.to_owned());
                format!("{} answered with {what}", run.provider.name)
            })
        }
        Ok(Changes::CannotTell(why)) => Err(why),
        Err(error) => {
            if is_a_lie(&error) {
                *caught.lock() = Some(error.to_string());
            }
            Err(format!("{} failed to say: {}", run.provider.name, Chain(&error)))
        }
    }
}

/// A list whose extents are sorted, do not overlap and lie on the disk; the first that does not ends it with an error.
struct Checked {
    list: Box<dyn ChangeList>,
    /// The snapshot's. Nobody wants to hear of what lies past it.
    size_bytes: u64,
    /// Of a disk that shrank a provider may still speak as it was.
    known_bytes: u64,
    /// Where the last extent ended.
    end_bytes: u64,
    caught: Caught,
}

impl Checked {
    fn check(&mut self, extents: &[Extent]) -> Result<(), String> {
        if extents.len() > EXTENTS_AT_A_TIME {
            return Err(format!("{} extents at a time", extents.len()));
        }
        for extent in extents {
            let (offset, length) = (extent.offset_bytes, extent.length_bytes);
            let end = offset.checked_add(length).filter(|end| *end <= self.known_bytes);
            let Some(end) = end else {
                return Err(format!(
                    "an extent of {length} bytes at {offset}, on a disk of {} bytes",
                    self.known_bytes
                ));
            };
            if length == 0 {
                return Err(format!("an empty extent at {offset}"));
            }
            if offset < self.end_bytes {
                return Err(format!(
                    "an extent at {offset} after one that ends at {}",
                    self.end_bytes
                ));
            }
            self.end_bytes = end;
        }
        Ok(())
    }
}

#[async_trait]
impl ChangeList for Checked {
    async fn next(&mut self) -> Result<Vec<Extent>, ProviderError> {
        let mut extents = match self.list.next().await {
            Ok(extents) => extents,
            Err(error) => {
                if is_a_lie(&error) {
                    *self.caught.lock() = Some(error.to_string());
                }
                return Err(error);
            }
        };
        match self.check(&extents) {
            Ok(()) => {
                // They are sorted: once none is left, none comes.
                extents.retain(|extent| extent.offset_bytes < self.size_bytes);
                if let Some(last) = extents.last_mut() {
                    last.length_bytes = last.length_bytes.min(self.size_bytes - last.offset_bytes);
                }
                Ok(extents)
            }
            Err(what) => {
                *self.caught.lock() = Some(what.clone());
                Err(ProviderError {
                    kind: ProviderErrorKind::BadAnswer,
                    text: format!("the provider listed {what}"),
                    hint: None,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Said(Vec<Vec<Extent>>);

    #[async_trait]
    impl ChangeList for Said {
        async fn next(&mut self) -> Result<Vec<Extent>, ProviderError> {
            Ok(if self.0.is_empty() {
                Vec::new()
            } else {
                self.0.remove(0)
            })
        }
    }

    async fn listen(extents: &[&[(u64, u64)]]) -> Result<usize, String> {
        let extent = |(offset_bytes, length_bytes): &(u64, u64)| Extent {
            offset_bytes: *offset_bytes,
            length_bytes: *length_bytes,
        };
        let said = extents.iter().map(|part| part.iter().map(extent).collect()).collect();
        let caught = Caught::default();
        let mut list = Checked {
            list: Box::new(Said(said)),
            size_bytes: 90,
            known_bytes: 100,
            end_bytes: 0,
            caught: caught.clone(),
        };
        let mut count = 0;
        loop {
            match list.next().await {
                Ok(part) if part.is_empty() => return Ok(count),
                Ok(part) => count += part.len(),
                Err(_) => return Err(caught.lock().clone().expect("caught")),
            }
        }
    }

    #[tokio::test]
    async fn lists_that_cannot_be_are_caught() {
        assert_eq!(listen(&[]).await, Ok(0));
        assert_eq!(listen(&[&[(0, 10), (10, 5)], &[(80, 20)]]).await, Ok(3));
        // Past the end of a disk that shrank.
        assert_eq!(listen(&[&[(0, 10)], &[(90, 10)]]).await, Ok(1));
        assert!(listen(&[&[(0, 10), (9, 5)]]).await.is_err());
        assert!(listen(&[&[(50, 10)], &[(0, 5)]]).await.is_err());
        assert!(listen(&[&[(90, 11)]]).await.is_err());
        assert!(listen(&[&[(u64::MAX, 2)]]).await.is_err());
        assert!(listen(&[&[(3, 0)]]).await.is_err());
    }
}
