//! What is measured: workloads, and what is done with each.

use std::path::{Path, PathBuf};

use stave_test_support::workloads::{self, Expected, Workload};

use crate::Failure;

/// What is done with a workload, once a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// No cache is used; base images are present. The result is a local image.
    Cold,
    /// The same build again.
    Warm,
    /// One file of the context has changed.
    OneFile,
    /// Fifty builds, one file changed before each.
    Edits,
    /// What is built already, and never was exported, goes to a registry with gzip layers.
    PushGzip,
    /// The same with zstd layers.
    PushZstd,
    /// On an empty state directory: everything is pulled and unpacked.
    Fresh,
    /// As cold, and the cache of every step goes to a registry.
    Export,
    /// On an empty state directory, with a cache that was exported to a registry.
    Import,
    /// A container that does nothing.
    Start,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "no-op",
            Self::OneFile => "one file changed",
            Self::Edits => "50 edits",
            Self::PushGzip => "push gzip",
            Self::PushZstd => "push zstd",
            Self::Fresh => "pull + unpack",
            Self::Export => "cold + cache export",
            Self::Import => "cache import",
            Self::Start => "run --rm busybox true",
        }
    }
}

/// A workload with its operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// One build context.
    One(Workload),
    /// Sixteen contexts, built at once.
    Sixteen,
    /// The same large context, edited again and again.
    Monorepo,
    /// Containers.
    Run,
}

impl Case {
    /// The named ones; without names those that need no network and little disk.
    pub(crate) fn select(names: &[String]) -> Result<Vec<Self>, Failure> {
        let all: Vec<Self> = Workload::ALL
            .into_iter()
            .map(Self::One)
            .chain([Self::Sixteen, Self::Monorepo, Self::Run])
            .collect();
        if names.is_empty() {
            return Ok(all.into_iter().filter(|case| case.by_default()).collect());
        }
        let known = || all.iter().map(|case| case.name()).collect::<Vec<_>>().join(" ");
        let find = |name: &String| all.iter().copied().find(|case| case.name() == name);
        names
            .iter()
            .map(|name| {
                find(name)
                    .ok_or_else(|| format!("no workload is called {name}; there are {}", known()).into())
            })
            .collect()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One(workload) => workload.name(),
            Self::Sixteen => "16-at-once",
            Self::Monorepo => "monorepo",
            Self::Run => "run",
        }
    }

    fn by_default(self) -> bool {
        !matches!(
            self,
            Self::One(
                Workload::NodeApp | Workload::PythonApp | Workload::ManyFiles200k | Workload::BigLayer2G
            )
        )
    }

    pub(crate) fn operations(self) -> &'static [Operation] {
        use Operation::{Cold, Edits, Export, Fresh, Import, OneFile, PushGzip, PushZstd, Start, Warm};
        match self {
            Self::One(Workload::HelloC | Workload::ManyFiles) => &[Cold, Warm, OneFile],
            Self::One(Workload::NodeApp | Workload::PythonApp) => &[Cold, Export, Warm, OneFile, Import],
            Self::One(Workload::ManyFiles200k) => &[Warm, OneFile],
            Self::One(Workload::BigLayer | Workload::BigLayer2G) => &[Cold, Warm, PushGzip, PushZstd],
            Self::One(Workload::Chain60) => &[Cold, Export, Warm, Import],
            Self::One(Workload::Toolchain) => &[Fresh],
            Self::One(_) => &[Cold, Warm],
            Self::Sixteen => &[Cold],
            Self::Monorepo => &[Edits],
            Self::Run => &[Start],
        }
    }

    /// Writes the context; of sixteen, the folder that holds them.
    pub(crate) fn write(self, folder: &Path) -> Result<PathBuf, Failure> {
        match self {
            Self::One(workload) => Ok(workload.write(folder)?),
            Self::Monorepo => {
                let context = folder.join(self.name());
                std::fs::create_dir_all(&context)?;
                workloads::many_files(&context, 20_000)?;
                Ok(context)
            }
            Self::Sixteen => {
                let context = folder.join(self.name());
                for number in 0..16 {
                    let one = context.join(number.to_string());
                    std::fs::create_dir_all(&one)?;
                    std::fs::write(one.join("Dockerfile"), workloads::chain_called(&number.to_string(), 10))?;
                }
                Ok(context)
            }
            Self::Run => Ok(folder.to_owned()),
        }
    }

    /// The contexts under what [`Case::write`] returned.
    pub(crate) fn contexts(self, folder: &Path) -> Vec<PathBuf> {
        match self {
            Self::Sixteen => (0..16).map(|number| folder.join(number.to_string())).collect(),
            _ => vec![folder.to_owned()],
        }
    }

    /// What the image must hold.
    pub(crate) fn expected(self) -> Option<Vec<Expected>> {
        match self {
            Self::One(workload) => Some(workload.expected()),
            Self::Monorepo => Some(Workload::ManyFiles.expected()),
            Self::Sixteen | Self::Run => None,
        }
    }
}
