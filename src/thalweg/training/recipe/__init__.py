"""What a recipe says: read strictly, checked across its sections, every fault explained."""
