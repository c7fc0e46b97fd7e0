//! Every case under criterion's clock: `cargo bench -p stave-measure [CASE]`.

use criterion::Criterion;
use stave_measure::Case;

fn main() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    for case in Case::ALL {
        let mut round = case.prepare();
        criterion.bench_function(case.name(), |bencher| bencher.iter(&mut round));
    }
    criterion.final_summary();
}
