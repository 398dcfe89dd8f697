"""Local parts of a single machine: embedded servers, generated secrets, the limit of open files."""
