//! What README and the book tell their readers to type does what they say.

use std::path::Path;

use mesh_tests::{walk::walk, world::scene};

fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn the_tour_of_the_readme_goes_as_it_says() {
    scene(|world| {
        walk(
            world,
            &top().join("README.md"),
            Some("Five minutes by hand"),
        )
    });
}

#[test]
fn the_tutorial_of_the_book_goes_as_it_says() {
    scene(|world| walk(world, &top().join("docs/book/tutorial.md"), None));
}
