"""What a language model reads and says: tokens, chats, conversations with videos, packing."""
