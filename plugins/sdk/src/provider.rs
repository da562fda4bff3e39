//! A provider as a Rust trait, with what most have in common done already.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Once;

use crate::bindings::coffre::plugin::log;
use crate::bindings::exports::coffre::plugin::provider as contract;
use crate::bindings::exports::coffre::plugin::provider::{Base, Description, Request, Snapshot};
use crate::{Disk, Extent, Failure, Finding, Machine};

/// What a provider does. `wit/provider.wit` says when each function is called, how often, and what its errors mean.
pub trait Provider: 'static {
    fn describe() -> Description;
    fn discover(machine: &Machine) -> Result<Vec<Disk>, Failure>;
    fn check(machine: &Machine, disks: &[String]) -> Result<Vec<Finding>, Failure> {
        let _ = (machine, disks);
        Ok(Vec::new())
    }
    fn take(machine: &Machine, request: &Request) -> Result<Snapshot, Failure>;
    fn changed(machine: &Machine, id: &str, disk: &str, base: &str) -> Result<ListedChanges, Failure> {
        let _ = (machine, id, disk, base);
        Ok(ListedChanges::CannotTell(
            "this provider does not track changes".to_owned(),
        ))
    }
    /// Only where a source is [`Source::Stream`](crate::Source::Stream).
    fn read(machine: &Machine, id: &str, disk: &str, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let _ = (machine, id, disk, offset, length);
        Err(Failure::Unsupported("this provider streams no disks".to_owned()))
    }
    fn settle(machine: &Machine, keep: &[Base]) -> Result<(), Failure>;
    fn release(machine: &Machine, id: &str) -> Result<(), Failure>;
    fn held(machine: &Machine) -> Result<Vec<String>, Failure>;
}

/// The next extents of a listing; empty ends it.
pub type Step = Result<Vec<Extent>, Failure>;

/// A listing under way.
pub trait Steps {
    fn next(&mut self) -> Step;
}

/// What `changed` answers.
pub enum ListedChanges {
    Listed(Box<dyn Steps>),
    InNbdContext,
    CannotTell(String),
}

/// Makes the contract's exports of a [`Provider`].
pub struct Adapter<P>(PhantomData<P>);

/// The contract's resource.
pub struct Listing(RefCell<Box<dyn Steps>>);

impl contract::GuestChangeList for Listing {
    fn next(&self) -> Step {
        self.0.borrow_mut().next()
    }
}

/// A panic's message would be lost with the instance.
fn say_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            log::write(log::Level::Error, &panic.to_string().replace('\n', " "))
        }));
    });
}

impl<P: Provider> contract::Guest for Adapter<P> {
    type ChangeList = Listing;

    fn describe() -> Description {
        say_panics();
        P::describe()
    }

    fn discover(machine: Machine) -> Result<Vec<Disk>, Failure> {
        say_panics();
        P::discover(&machine)
    }

    fn check(machine: Machine, disks: Vec<String>) -> Result<Vec<Finding>, Failure> {
        say_panics();
        P::check(&machine, &disks)
    }

    fn take(machine: Machine, request: Request) -> Result<Snapshot, Failure> {
        say_panics();
        P::take(&machine, &request)
    }

    fn changed(machine: Machine, id: String, disk: String, base: String) -> Result<contract::Changes, Failure> {
        say_panics();
        Ok(match P::changed(&machine, &id, &disk, &base)? {
            ListedChanges::Listed(steps) => {
                contract::Changes::Listed(contract::ChangeList::new(Listing(RefCell::new(steps))))
            }
            ListedChanges::InNbdContext => contract::Changes::InNbdContext,
            ListedChanges::CannotTell(why) => contract::Changes::CannotTell(why),
        })
    }

    fn read(machine: Machine, id: String, disk: String, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        say_panics();
        P::read(&machine, &id, &disk, offset, length)
    }

    fn settle(machine: Machine, keep: Vec<Base>) -> Result<(), Failure> {
        say_panics();
        P::settle(&machine, &keep)
    }

    fn release(machine: Machine, id: String) -> Result<(), Failure> {
        say_panics();
        P::release(&machine, &id)
    }

    fn held(machine: Machine) -> Result<Vec<String>, Failure> {
        say_panics();
        P::held(&machine)
    }
}
