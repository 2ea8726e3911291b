"""Results as one self-contained web page: everything inline, nothing fetched. Loaded only when a page is written."""
