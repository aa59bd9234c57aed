"""What the machine is: one probe per vendor, what-if machines, live meters. Knows no model and no job."""
