//! How long the small things take: `cargo bench -p secondwind-tests`. With a name after `--`, only
//! those whose names contain it. What is counted instead of timed: the program `instructions`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use secondwind_tests::work::PIECES;

fn small(criterion: &mut Criterion) {
    for piece in PIECES {
        let mut group = criterion.benchmark_group(piece.name);
        group.throughput(Throughput::Elements(piece.count));
        let mut work = None;
        group.bench_function("time", |bencher| bencher.iter(work.get_or_insert_with(piece.make)));
        group.finish();
    }
}

criterion_group!(benches, small);
criterion_main!(benches);
