"""What a page is called, which namespace it lives in, and where its bytes lie in memory."""
