"""Exchange with other formats. Each module describes the bytes of one or several at its top."""
