"""Labels of every form, put onto the image they were drawn on."""
