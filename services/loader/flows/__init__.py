"""What the datapath reported of packets: read, remembered and told."""
