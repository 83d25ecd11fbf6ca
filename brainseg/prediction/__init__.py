"""A trained model on new scans, and the folder that it writes."""
