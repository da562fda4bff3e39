//! What errors of the lower crates mean to whoever called.

use anyhow::Context;

use super::*;

fn exit_of(error: impl Error + Send + Sync + 'static) -> Exit {
    judge(&Err::<(), _>(error).context("cannot do it").unwrap_err()).exit
}

fn provider_fails(kind: ProviderErrorKind) -> JobError {
    JobError::Provider {
        provider: "image".to_owned(),
        doing: "take the snapshot",
        source: ProviderError {
            kind,
            text: String::new(),
            hint: None,
        },
    }
}

#[test]
fn an_error_of_a_lower_crate_decides_the_exit_code_below_any_context() {
    assert_eq!(
        exit_of(OpenError::WrongKey {
            slots: 2,
            unreadable: 0
        }),
        Exit::Denied
    );
    assert_eq!(exit_of(OpenError::NotThere), Exit::Config);
    assert_eq!(exit_of(KeyError::TooShort { bytes: 5 }), Exit::Config);
    assert_eq!(
        exit_of(InitError::NotEmpty {
            example: "x".to_owned()
        }),
        Exit::Failed
    );
    assert_eq!(exit_of(SecretError::NotSet("KEY".to_owned())), Exit::Config);
    let unreachable = StoreError::Unreachable {
        store: "s3://bucket".to_owned(),
        source: io::Error::other("no route").into(),
    };
    let shared = coffre_vault::WriteError::Pack {
        pack: "1".to_owned(),
        source: Arc::new(unreachable),
    };
    assert_eq!(exit_of(shared), Exit::TryAgain);
    assert_eq!(exit_of(io::Error::from(io::ErrorKind::PermissionDenied)), Exit::Denied);
    assert_eq!(exit_of(io::Error::other("something else")), Exit::Failed);
}

#[test]
fn a_failed_job_is_judged_by_what_failed_in_it() {
    assert_eq!(exit_of(JobError::Cancelled), Exit::Cancelled);
    assert_eq!(exit_of(provider_fails(ProviderErrorKind::Busy)), Exit::TryAgain);
    assert_eq!(exit_of(provider_fails(ProviderErrorKind::Denied)), Exit::Denied);
    assert_eq!(exit_of(provider_fails(ProviderErrorKind::Trapped)), Exit::Failed);
    let busy = StateError::Busy {
        machine: "web01".to_owned(),
        holder: String::new(),
    };
    assert_eq!(exit_of(JobError::State(busy)), Exit::TryAgain);
}

#[test]
fn the_outermost_complaint_wins_and_hints_are_gathered_once() {
    let error = Err::<(), _>(OpenError::NotThere)
        .context(Complaint::failed("cannot restore", "first do this"))
        .unwrap_err();
    let verdict = judge(&error);
    assert_eq!(verdict.exit, Exit::Failed);
    assert_eq!(verdict.hints.len(), 2);
    assert_eq!(verdict.hints[0], "first do this");
}
