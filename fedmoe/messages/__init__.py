"""What travels between server and clients, and how it is put into Flower's records."""
