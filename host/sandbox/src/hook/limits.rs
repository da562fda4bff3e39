//! What a script may use up. Scripts belong to the operator, so these do not keep out an enemy; they turn a mistake into a
//! message instead of a backup that hangs or a process that the system kills for its memory.

use std::time::Duration;

/// A fraction of a second of computing: twenty steps for each line of the longest output. A script waits for others and
/// computes little; one that loops by mistake ends here even if its timeout is long. Also what bounds a map that grows by
/// assignment, which the interpreter looks at only later.
pub const OPERATIONS: u64 = 2_000_000;

/// Enough for any recursion over a small tree, and far from the end of [`STACK_BYTES`] together with the expression depths.
pub const CALL_LEVELS: usize = 32;

/// Expressions nested by people stay below a dozen; each level costs a stack frame of the interpreter.
pub const EXPRESSION_DEPTH: usize = 64;
pub const FUNCTION_EXPRESSION_DEPTH: usize = 32;

/// The interpreter's frames are some KiB each without optimisation; only pages that are touched count as memory.
pub const STACK_BYTES: usize = 64 << 20;

/// Holds both kept outputs of a command even where every byte of them is broken UTF-8 and becomes three.
pub const STRING_BYTES: usize = 512 * 1024;

/// As many elements as a kept output of a command has bytes, so that splitting one never fails.
pub const ARRAY_ITEMS: usize = 64 * 1024;

/// A settings table or a parsed JSON document of a database tool.
pub const MAP_ITEMS: usize = 4096;

pub const VARIABLES: usize = 256;
pub const FUNCTIONS: usize = 128;

/// Files that one script may import, all in all.
pub const MODULES: usize = 16;

/// The size of a script: long before this nobody reads it before trusting it.
pub const SCRIPT_BYTES: u64 = 256 * 1024;

/// How often the clock is looked at: every so many operations, which take microseconds.
pub const OPERATIONS_PER_LOOK: u64 = 64;

/// How often our memory is looked at: rarer, since it is a system call, and often enough that no 32 MiB come together
/// between two looks.
pub const OPERATIONS_PER_MEMORY_LOOK: u64 = 256;

/// How much more memory than at its start the process may have while a script runs. The interpreter bounds each value,
/// and lists as they grow, but not the sum of what is assigned into a map. Others allocate beside it: so this is as much
/// as a whole backup may have.
pub const GROWTH_BYTES: u64 = 256 << 20;

/// One line of a log; longer ones are cut.
pub const LOG_LINE_BYTES: usize = 8 * 1024;

/// What a call may say in all, and what a recovery point keeps of it.
pub const OUTPUT_BYTES: usize = 64 * 1024;

/// What `pre` may leave for `post`: it stands in the job's journal.
pub const MEMORY_BYTES: usize = 64 * 1024;

/// Attachments of one hook: a label or a definition, not a second backup.
pub const ATTACHMENTS: usize = 16;
pub const ATTACHMENT_NAME_BYTES: usize = 255;
/// What a point takes of one attachment.
pub const ATTACHMENT_BYTES: usize = 1 << 20;

/// What one command may be given: a script for a database tool, not a dump.
pub const INPUT_BYTES: usize = STRING_BYTES;
pub const ARGUMENTS: usize = 256;

/// Sessions that one hook holds open at a time: one lock each of a few databases.
pub const SESSIONS: usize = 8;

/// How long a session that a script left open may take to end once its input is closed, before it is killed. A database's
/// client says goodbye in milliseconds, and applications wait.
pub const SESSION_END: Duration = Duration::from_secs(1);

/// Findings of one check that somebody will read.
pub const FINDINGS: usize = 64;

/// Between two looks of `wait_until`: short at first, since an application waits meanwhile.
pub const FIRST_WAIT: Duration = Duration::from_millis(10);
pub const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// How finely a sleep is cut, so that a cancelled job does not wait for it.
pub const SLEEP_STEP: Duration = Duration::from_millis(20);
