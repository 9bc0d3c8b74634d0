"""What theory says of a `Spec`: infinite width by recursion, finite width by simulation exact in law, bounds and laws."""
