//! Everything the demo claims, faults under traffic included.

use mesh_tests::{demo::Demo, world::scene};

#[test]
fn the_demo_does_what_it_claims() {
    scene(|world| {
        let say = |text: &str| println!("{text}");
        Demo::start(world, &say)?.check(&say)
    });
}
