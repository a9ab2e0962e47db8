"""What a finished run is worth: statistics, verdict, report. Reads run folders only, never a model."""
