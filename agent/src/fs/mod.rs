//! What is asked of file systems, and done to them, with nothing of jobs or peers: no tokio, no config, no tables.
//!
//! | file | |
//! |---|---|
//! | `durable` | every fsync and directory sync, and every rename that a promise rests on, each with its crash promise |
//! | `confined` | opens what lies below a folder, one component at a time, following nothing |
//! | `version` | what tells one item from the next |
//! | `dev_ino` | by what the kernel tells one file from another |
//! | `lease` | asks the kernel who has a file open for writing |
//! | `file_system` | what is trusted on which file system, and why: one table |
//! | `folder_id`, `own_folder` | the random id that tells one folder from another, in `.dropwire` |
//! | `free_name` | which name a file or folder gets where its own is taken |
//! | `border`, `snapshot` | what is mounted in a folder, where no rename leads; is a folder a btrfs snapshot? |
//! | `bundle` | what of a folder is sent, which version it is, its stream from any offset |
//! | `marker`, `unsent` | the empty file that says another is complete; names that are never sent |
//! | `own_files` | the agent's own files, which are not sent whatever their name, and whose descriptors are never closed |
//! | `remove_tree`, `disk` | removes a folder of any depth; how much is free |

pub mod border;
pub mod bundle;
pub mod confined;
pub mod dev_ino;
pub mod disk;
pub mod durable;
pub mod file_system;
pub mod folder_id;
pub mod free_name;
pub mod lease;
pub mod marker;
pub mod own_files;
pub mod own_folder;
pub mod remove_tree;
pub mod snapshot;
pub mod unsent;
pub mod version;
