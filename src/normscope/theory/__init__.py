"""What theory says of a `Spec`: recursions at infinite width, simulation exact in law at finite width, laws."""
