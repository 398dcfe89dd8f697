"""What a single machine needs: embedded servers, a generated token secret, limits of the operating system."""
